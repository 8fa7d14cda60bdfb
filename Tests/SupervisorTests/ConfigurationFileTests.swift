import Glibc
import LinuxCalls
import QMPProtocol
import Testing

@testable import Supervisor

@Suite("Configuration files") struct ConfigurationFileTests {
    private func read(_ text: String, named name: String) throws -> RunConfiguration {
        let directory = try TemporaryDirectory.make()
        let path = "\(directory)/\(name)"
        defer {
            unlink(path)
            rmdir(directory)
        }
        let file = try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT | O_TRUNC)
        try file.writeAll(Array(text.utf8))
        var configuration = RunConfiguration()
        try configuration.apply(try ConfigurationFile.read(path))
        return configuration
    }

    static let toml = """
        # A guest with everything.
        name = "web"
        uuid = "00112233-4455-6677-8899-aabbccddeeff"
        machine = "virt"
        kernel = "/boot/Image"
        initrd = '/boot/initrd'
        append = "console=ttyS0 \\"quoted\\""
        memory = "512M"
        memory-backend = "anonymous"
        cpus = 0x4
        virtio = "legacy"
        net = ["socket=/run/passt.sock", "none"]
        console = "unix"
        paused = true
        qmp = [
          "unix:/run/web.qmp",  # for libvirt
          "tcp:127.0.0.1:4444",
        ]

        [[disk]]
        path = "root.img"

        [[disk]]
        path = "data.img"
        readonly = true
        """

    static let json = """
        {"name": "web", "uuid": "00112233-4455-6677-8899-aabbccddeeff", "machine": "virt", "kernel": "/boot/Image",
         "initrd": "/boot/initrd", "append": "console=ttyS0 \\"quoted\\"", "memory": 536870912, "memory-backend": "anonymous",
         "cpus": 4, "virtio": "legacy", "net": ["socket=/run/passt.sock", "none"], "console": "unix", "paused": true,
         "qmp": ["unix:/run/web.qmp", "tcp:127.0.0.1:4444"],
         "disk": [{"path": "root.img"}, {"path": "data.img", "readonly": true}]}
        """

    @Test("TOML and JSON say the same, and what inspect tells is one too") func same() throws {
        let fromTOML = try read(Self.toml, named: "web.toml")
        #expect(fromTOML == (try read(Self.json, named: "web.json")))
        #expect(fromTOML == (try read(Self.json, named: "web.conf")))
        #expect(fromTOML == (try read(Self.toml, named: "web.conf")))
        #expect(fromTOML.memory == 512 << 20 && fromTOML.disks.count == 2 && fromTOML.qmp.count == 2)
        #expect(fromTOML == (try read(fromTOML.json.prettyJSON, named: "inspected.json")))
    }

    static let wrong: [(String, String, String)] = [
        ("memory = ", "a.toml", "line 1, column"), ("a = 1\na = 2", "a.toml", "line 2, column"),
        ("frobnicate = 1", "a.toml", "unknown member 'frobnicate'"), ("memory = 1979-05-27", "a.toml", "1979-05-27"),
        ("cpus = \"four\"", "a.toml", "'cpus' in the configuration is an integer, not string"),
        ("{\"cpus\": 1,}", "a.json", "expecting value"), ("{\"cpus\": 1} 2", "a.json", "more than one JSON value"),
        ("[disk]\npath = \"x\"", "a.toml", "'disk' in the configuration is a list"),
    ]

    @Test("what is wrong is said with its place or its name", arguments: wrong)
    func refuses(text: String, name: String, reason: String) {
        do {
            _ = try read(text, named: name)
            Issue.record("accepted")
        } catch {
            #expect("\(error)".contains(reason) && (error as? Refusal)?.status == .usage, "\(error)")
        }
    }
}
