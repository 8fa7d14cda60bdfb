import QMPProtocol
import Testing

@testable import Supervisor

@Suite("Addresses of a migration") struct MigrationAddressTests {
    @Test("a URI is what QEMU takes it for")
    func parse() throws {
        for (uri, address) in [
            ("unix:/a/b:c", .unix("/a/b:c")), ("unix:@name", .unix("@name")),
            ("tcp:localhost:4444", .tcp(host: "localhost", port: 4444)), ("tcp:[::1]:0", .tcp(host: "::1", port: 0)),
            ("fd:7", .descriptor("7")), ("exec:cat >a:b", .exec(["/bin/sh", "-c", "cat >a:b"])),
            ("file:/a", .file("/a", offset: 0)), ("file:/a,offset=0x10", .file("/a", offset: 16)),
            ("file:/a,offset=2M", .file("/a", offset: 2 << 20)),
        ] as [(String, MigrationAddress)] {
            #expect(try MigrationAddress(uri: uri) == address, "\(uri)")
            #expect(try MigrationAddress(address: address.json) == address, "\(address.json)")
        }
    }

    @Test(
        "what is none is refused",
        arguments: [
            "", "unix", "unix:", "tcp:host", "tcp:host:70000", "rdma:x", "file:", "file:/a,offset=-1",
            "file:/a,offset=9999999999T",
        ])
    func refused(uri: String) {
        #expect(throws: QMPError.self) { try MigrationAddress(uri: uri) }
    }
}
