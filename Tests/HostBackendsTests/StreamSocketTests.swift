import DeviceModel
import Foundation
import HostBackends
import LinuxCalls
import Synchronization
import Testing

func wire(_ frame: [UInt8]) -> [UInt8] {
    [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: frame.count >> $0) } + frame
}

func frame(_ count: Int, _ seed: Int = 0) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ seed) } }

@Suite("A network over a stream socket") struct StreamSocketTests {
    let loop: TestLoop

    init() throws { loop = try TestLoop() }

    @Test("frames cross both ways, however the stream is cut")
    func frames() throws {
        let (here, there) = try StreamSocket.pair()
        let backend = StreamSocketBackend(socket: here, loop: loop.loop)
        let collector = Collector<[UInt8]>()
        _ = backend.connect(collector)
        let sent = [60, 1514, 61, 65_535, 14].enumerated().map { frame($0.element, $0.offset) }
        let bytes = sent.flatMap(wire)
        let (first, second) = (Array(bytes[..<7]), Array(bytes[7...]))
        try there.writeAll(first)
        let writer = try HostThread(name: "writer") { try? there.writeAll(second) }
        #expect(collector.wait(for: 5))
        writer.join()
        #expect(collector.pieces == sent)
        #expect(backend.send(frame(100)))
        #expect(read(104, from: there) == wire(frame(100)))
    }

    @Test("a device without buffers stops the reading and gets the same frame again")
    func backpressure() throws {
        let (here, there) = try StreamSocket.pair()
        let backend = StreamSocketBackend(socket: here, loop: loop.loop)
        let collector = Collector<[UInt8]>(room: 2)
        _ = backend.connect(collector)
        for seed in 0..<5 { try there.writeAll(wire(frame(80, seed))) }
        #expect(collector.waitForRefusal())
        #expect(collector.pieces.count == 2)
        collector.setRoom(10)
        backend.receiveIsWanted()
        #expect(collector.wait(for: 5))
        #expect(collector.pieces == (0..<5).map { frame(80, $0) })
    }

    @Test("a full socket refuses frames whole and says when there is room")
    func fullSocket() throws {
        let (here, there) = try StreamSocket.pair()
        let backend = StreamSocketBackend(socket: here, loop: loop.loop)
        let writable = backend.connect(Collector<[UInt8]>())
        var sent = 0
        while backend.send(frame(1500, sent)) { sent += 1 }
        #expect(sent > 0)
        var received = read(wire(frame(1500)).count * sent, from: there)
        #expect(writable.wait(timeoutNanoseconds: 20_000_000_000))
        #expect(backend.send(frame(1500, sent)))
        received += read(1504, from: there)
        #expect(received == (0...sent).flatMap { wire(frame(1500, $0)) })
    }

    @Test(
        "a length that no frame has ends the link",
        arguments: [[UInt8](repeating: 0, count: 4), [0, 1, 0x0f, 0], [255, 255, 255, 255]])
    func brokenPeer(bytes: [UInt8]) throws {
        let (here, there) = try StreamSocket.pair()
        let backend = StreamSocketBackend(socket: here, loop: loop.loop)
        let writable = backend.connect(Collector<[UInt8]>())
        try there.writeAll(bytes + frame(60))
        #expect(writable.wait(timeoutNanoseconds: 20_000_000_000))
        #expect(backend.isClosed)
        #expect(backend.send(frame(60)), "dropped, as by an unplugged cable")
    }

    @Test("a peer that goes away is survived")
    func peerGone() throws {
        var (here, there): (OwnedDescriptor, OwnedDescriptor?) = try StreamSocket.pair()
        let backend = StreamSocketBackend(socket: here, loop: loop.loop)
        let writable = backend.connect(Collector<[UInt8]>())
        there = nil
        _ = there
        #expect(writable.wait(timeoutNanoseconds: 20_000_000_000))
        for _ in 0..<10 { #expect(backend.send(frame(60))) }
        backend.quiesce()
        backend.resume()
    }

    @Test("nothing is lost or repeated by a hand-over at any byte, in either direction", arguments: 0..<40)
    func handover(cut: Int) throws {
        let (here, there) = try StreamSocket.pair()
        let source = StreamSocketBackend(socket: here, loop: loop.loop)
        let first = Collector<[UInt8]>(room: cut % 3 == 0 ? 1 : .max)
        _ = source.connect(first)
        let incoming = (0..<6).flatMap { wire(frame(60 + $0, $0)) }
        let position = cut * incoming.count / 40
        try there.writeAll(Array(incoming[..<position]))
        // Fill the socket until a frame is taken only in part, now and then.
        var sent = 0
        if cut % 2 == 0 { while source.send(frame(999, sent)) { sent += 1 } }
        loop.loop.barrier()
        source.quiesce()
        let handover = try cross(source.handOver())
        try there.writeAll(Array(incoming[position...]))
        let destination = try StreamSocketBackend(adopting: handover, loop: loop.loop)
        let second = Collector<[UInt8]>()
        let writable = destination.connect(second)
        loop.loop.barrier()
        #expect(second.pieces.isEmpty, "nothing before resume")
        source.relinquish()
        destination.resume()
        #expect(second.wait(for: 6 - first.pieces.count))
        #expect(first.pieces + second.pieces == (0..<6).map { frame(60 + $0, $0) })
        let outgoing = (0..<sent).flatMap { wire(frame(999, $0)) }
        #expect(read(outgoing.count, from: there) == outgoing)
        while !destination.send(frame(77)) { #expect(writable.wait(timeoutNanoseconds: 20_000_000_000)) }
        #expect(read(81, from: there) == wire(frame(77)))
    }

    @Test("after a hand-over that failed the source goes on")
    func failedHandover() throws {
        let (here, there) = try StreamSocket.pair()
        let source = StreamSocketBackend(socket: here, loop: loop.loop)
        let collector = Collector<[UInt8]>()
        _ = source.connect(collector)
        try there.writeAll(Array(wire(frame(60)).prefix(10)))
        loop.loop.barrier()
        source.quiesce()
        var destination: StreamSocketBackend? = try StreamSocketBackend(
            adopting: try cross(source.handOver()), loop: loop.loop)
        destination = nil
        _ = destination
        try there.writeAll(Array(wire(frame(60)).dropFirst(10)))
        source.resume()
        #expect(collector.wait(for: 1))
        #expect(collector.pieces == [frame(60)])
    }

    @Test("damaged hand-over state is refused")
    func damagedState() throws {
        let (here, _) = try StreamSocket.pair()
        let backend = StreamSocketBackend(socket: here, loop: loop.loop)
        backend.quiesce()
        let good = try backend.handOver()
        for count in 0..<good.state.count {
            var bad = good
            bad.state = Array(good.state.prefix(count))
            #expect(throws: BackendError.self) { _ = try StreamSocketBackend(adopting: bad, loop: loop.loop) }
        }
        var bad = good
        bad.descriptors = []
        #expect(throws: BackendError.self) { _ = try StreamSocketBackend(adopting: bad, loop: loop.loop) }
    }
}

/// Ethernet, ARP, IPv4, UDP and DHCP, as much as a test needs.
enum Packets {
    static let guest: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]
    static let everybody = [UInt8](repeating: 0xff, count: 6)

    /// Who has `target`? Tell `sender`.
    static func arpRequest(for target: [UInt8], from sender: [UInt8]) -> [UInt8] {
        everybody + guest + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + guest + sender + [0, 0, 0, 0, 0, 0] + target
    }

    static func isARPReply(_ frame: [UInt8], from target: [UInt8]) -> Bool {
        frame.count >= 42 && frame[12] == 8 && frame[13] == 6 && frame[21] == 2 && Array(frame[28..<32]) == target
    }

    static func dhcpDiscover() -> [UInt8] {
        var bootp = [UInt8](repeating: 0, count: 236)
        bootp.replaceSubrange(0..<8, with: [1, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe])
        bootp.replaceSubrange(28..<34, with: guest)
        bootp += [0x63, 0x82, 0x53, 0x63, 53, 1, 1, 55, 3, 1, 3, 6, 255]
        bootp += [UInt8](repeating: 0, count: 300 - bootp.count)
        let length = 8 + bootp.count
        let udp: [UInt8] = [0, 68, 0, 67, UInt8(length >> 8), UInt8(length & 0xff), 0, 0]
        let total = 20 + length
        var ip: [UInt8] = [
            0x45, 0, UInt8(total >> 8), UInt8(total & 0xff), 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255,
        ]
        var sum = stride(from: 0, to: 20, by: 2).reduce(0) { $0 + Int(ip[$1]) << 8 + Int(ip[$1 + 1]) }
        while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
        ip[10] = UInt8((~sum >> 8) & 0xff)
        ip[11] = UInt8(~sum & 0xff)
        return everybody + guest + [8, 0] + ip + udp + bootp
    }

    /// The address an offer gives, if the frame is one.
    static func offeredAddress(_ frame: [UInt8]) -> [UInt8]? {
        guard frame.count > 42 + 240, frame[12] == 8, frame[13] == 0, frame[23] == 17, frame[42] == 2,
            Array(frame[46..<50]) == [0xca, 0xfe, 0xba, 0xbe]
        else { return nil }
        return Array(frame[58..<62])
    }
}

@Suite("passt") struct PasstTests {
    @Test("answers DHCP and ARP through the stream backend, also after it moved")
    func works() throws {
        guard access("/usr/bin/passt", X_OK) == 0 else {
            print("skipped: passt is not installed")
            return
        }
        let scratch = try Scratch()
        chmod(scratch.path, 0o777)  // passt gives up root and must make its socket there
        let loop = try TestLoop()
        let path = scratch.path + "/passt"
        let passt = try Companion("/usr/bin/passt", ["--socket", path, "-f", "-q"])
        var backend: StreamSocketBackend?
        for _ in 0..<500 {
            backend = try? StreamSocketBackend(path: path, loop: loop.loop)
            if backend != nil || passt.child.wait(timeoutMilliseconds: 20) != nil { break }
        }
        guard var backend else {
            print("skipped: passt does not run here")
            return
        }
        var address: [UInt8]?
        for round in 0..<2 {
            let collector = Collector<[UInt8]>()
            _ = backend.connect(collector)
            if round == 1 { backend.resume() }
            #expect(backend.send(Packets.dhcpDiscover()))
            var seen = 0
            while address == nil || round == 1, collector.wait(for: seen + 1) {
                if let offered = Packets.offeredAddress(collector.pieces[seen]) {
                    if round == 1 { #expect(address == offered) }
                    address = offered
                    break
                }
                seen += 1
            }
            let mine = try #require(address)
            let other: [UInt8] = [mine[0], mine[1], mine[2], mine[3] ^ 1]
            #expect(backend.send(Packets.arpRequest(for: other, from: mine)))
            var isAnswered = false
            seen = 0
            while !isAnswered, collector.wait(for: seen + 1) {
                isAnswered = Packets.isARPReply(collector.pieces[seen], from: other)
                seen += 1
            }
            #expect(isAnswered)
            backend.quiesce()
            backend = try StreamSocketBackend(adopting: try cross(backend.handOver()), loop: loop.loop)
        }
        withExtendedLifetime(passt) {}
    }
}

@Suite("A tap") struct TapTests {
    let loop: TestLoop

    init() throws { loop = try TestLoop() }

    private func message(_ body: () throws -> Void) -> String {
        do {
            try body()
            return ""
        } catch { return "\(error)" }
    }

    @Test("an interface that is missing, no tap, or ill named is refused with a sentence")
    func refusals() {
        #expect(message { _ = try TapBackend(interface: "sidestep-none", loop: loop.loop) }.contains("ip tuntap add"))
        #expect(message { _ = try TapBackend(interface: "lo", loop: loop.loop) }.contains("not a tap"))
        #expect(message { _ = try TapBackend(interface: "", loop: loop.loop) }.contains("name"))
        #expect(message { _ = try TapBackend(interface: "../x", loop: loop.loop) }.contains("name"))
        #expect(
            message { _ = try TapBackend(descriptor: try OwnedDescriptor.event(), loop: loop.loop) }.contains("tap"))
    }

    /// Makes an interface of our own with an address; nil where that is not permitted.
    private func makeTap(_ name: String, _ subnet: UInt8, flags: Int16 = 0) throws -> OwnedDescriptor? {
        guard let tap = try? OwnedDescriptor.open("/dev/net/tun", flags: O_RDWR) else { return nil }
        var request = InterfaceRequest(
            name: name, flags: InterfaceRequest.tap | InterfaceRequest.noPacketInformation | flags)
        guard (try? request.attach(tap)) != nil,
            let ip = (["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"] as [String]).first(where: { access($0, X_OK) == 0 }),
            try run(ip, "addr", "add", "192.168.\(subnet).1/24", "dev", name) == .exited(status: 0),
            try run(ip, "link", "set", name, "up") == .exited(status: 0)
        else { return nil }
        return tap
    }

    @Test(
        "the host's kernel answers ARP through it, also after it moved",
        arguments: [Int16(0), InterfaceRequest.virtioHeader])
    func works(flags: Int16) throws {
        let subnet: UInt8 = flags == 0 ? 201 : 202
        let name = "sst\(subnet)p\(getpid() % 10_000)"
        guard let tap = try makeTap(name, subnet, flags: flags) else {
            print("skipped: making a tap interface is not permitted here")
            return
        }
        var backend = try TapBackend(descriptor: tap, loop: loop.loop)
        #expect(backend.interface == name)
        #expect(message { _ = try TapBackend(interface: name, loop: loop.loop) }.contains("another process uses it"))
        for round in 0..<2 {
            let collector = Collector<[UInt8]>()
            _ = backend.connect(collector)
            if round == 1 { backend.resume() }
            #expect(backend.send(Packets.arpRequest(for: [192, 168, subnet, 1], from: [192, 168, subnet, 2])))
            var isAnswered = false
            var seen = 0
            while !isAnswered, collector.wait(for: seen + 1) {
                isAnswered = Packets.isARPReply(collector.pieces[seen], from: [192, 168, subnet, 1])
                seen += 1
            }
            #expect(isAnswered)
            backend.quiesce()
            backend = try TapBackend(adopting: try cross(backend.handOver()), loop: loop.loop)
        }
    }

    @Test("a frame that was read and not taken crosses with the hand-over")
    func pendingFrame() throws {
        let name = "sst203p\(getpid() % 10_000)"
        guard let tap = try makeTap(name, 203) else {
            print("skipped: making a tap interface is not permitted here")
            return
        }
        let source = try TapBackend(descriptor: tap, loop: loop.loop)
        let first = Collector<[UInt8]>(room: 0)
        _ = source.connect(first)
        #expect(source.send(Packets.arpRequest(for: [192, 168, 203, 1], from: [192, 168, 203, 2])))
        #expect(first.waitForRefusal())
        source.quiesce()
        let destination = try TapBackend(adopting: try cross(source.handOver()), loop: loop.loop)
        let second = Collector<[UInt8]>()
        _ = destination.connect(second)
        source.relinquish()
        destination.resume()
        var seen = 0
        var isAnswered = false
        while !isAnswered, second.wait(for: seen + 1) {
            isAnswered = Packets.isARPReply(second.pieces[seen], from: [192, 168, 203, 1])
            seen += 1
        }
        #expect(isAnswered)
    }
}
