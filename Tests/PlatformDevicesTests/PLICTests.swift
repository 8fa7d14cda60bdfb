import ComponentState
import DeviceModel
import PlatformDevices
import Testing

@Suite("PLIC") struct PLICTests {
    let outputs = (0..<4).map { _ in LineProbe() }
    let device: PLIC

    init() { device = PLIC(contextLines: outputs.map(\.line)) }

    private func enable(_ sources: [Int], context: UInt64) {
        for word in 0..<3 {
            let bits = sources.filter { $0 / 32 == word }.reduce(UInt64(0)) { $0 | 1 << UInt64($1 % 32) }
            device.write(0x2000 + 0x80 * context + UInt64(word * 4), bits)
        }
    }

    private func claim(_ context: UInt64) -> UInt64 { device.read(0x20_0004 + 0x1000 * context) }
    private func complete(_ source: UInt64, _ context: UInt64) { device.write(0x20_0004 + 0x1000 * context, source) }

    @Test("a raised source reaches only the contexts that enable it")
    func routing() {
        device.write(4 * 10, 1)
        enable([10], context: 1)
        device.line(10).set(true)
        #expect(outputs.map(\.level) == [false, true, false, false])
        device.line(10).set(false)
        #expect(outputs.map(\.level) == [false, false, false, false])
    }

    @Test("priority 0 never interrupts, and the threshold must be exceeded")
    func thresholds() {
        enable([5], context: 0)
        device.line(5).set(true)
        #expect(!outputs[0].level)
        device.write(4 * 5, 3)
        #expect(outputs[0].level)
        device.write(0x20_0000, 3)
        #expect(!outputs[0].level)
        device.write(0x20_0000, 2)
        #expect(outputs[0].level)
    }

    @Test("the claim takes the highest priority, and the lowest number among equals")
    func order() {
        enable([3, 40, 41, 95], context: 2)
        for (source, priority) in [(3, 1), (40, 5), (41, 5), (95, 4)] {
            device.write(UInt64(4 * source), UInt64(priority))
            device.line(source).set(true)
        }
        #expect([claim(2), claim(2), claim(2), claim(2), claim(2)] == [40, 41, 95, 3, 0])
        #expect(!outputs[2].level)
    }

    @Test("a claimed source does not interrupt again until it is completed")
    func completion() {
        device.write(4 * 7, 1)
        enable([7], context: 0)
        device.line(7).set(true)
        #expect(claim(0) == 7)
        #expect(!outputs[0].level)
        #expect(device.read(0x1000) == 0)
        complete(7, 0)
        #expect(outputs[0].level)  // The line is still high.
        #expect(claim(0) == 7)
        device.line(7).set(false)
        complete(7, 0)
        #expect(!outputs[0].level)
    }

    @Test("a line that went low and high again before the completion interrupts after it")
    func pulseDuringService() {
        device.write(4 * 7, 1)
        enable([7], context: 0)
        device.line(7).set(true)
        #expect(claim(0) == 7)
        device.line(7).set(false)
        device.line(7).set(true)
        #expect(!outputs[0].level)
        complete(7, 0)
        #expect(outputs[0].level)
    }

    @Test("priorities and thresholds have three bits; source 0 has nothing")
    func widths() {
        device.write(4, 0xff)
        #expect(device.read(4) == 7)
        device.write(0x20_0000, 0xffff_fff9)
        #expect(device.read(0x20_0000) == 1)
        device.write(0, 7)
        #expect(device.read(0) == 0)
        device.write(0x2000, 0xffff_ffff)
        #expect(device.read(0x2000) == 0xffff_fffe)
    }

    @Test(
        "reserved places and other widths are harmless",
        arguments: [0x180, 0x100c, 0x200c, 0x2200, 0x20_0008, 0x20_4000, 0x5f_fffc])
    func reserved(offset: UInt64) {
        device.write(offset, .max)
        #expect(device.read(offset) == 0)
        #expect(device.read(offset, .eight) == 0)
    }

    @Test("completing what was never claimed, or does not exist, is harmless")
    func wrongCompletion() {
        for source in [0, 50, 96, 0xffff_ffff] as [UInt64] { complete(source, 0) }
        #expect(outputs.allSatisfy { !$0.level })
    }

    @Test("the section has QEMU's order and size")
    func wire() throws {
        device.write(4 * 10, 1)
        enable([10], context: 1)
        device.write(0x20_0000, 7)
        device.line(10).set(true)
        let body = try encode(device, .qemu7_2)
        #expect(body.count == 472)  // Two harts.
        func word(_ index: Int) -> UInt32 { body[index * 4..<index * 4 + 4].reduce(0) { $0 << 8 | UInt32($1) } }
        #expect(word(10) == 1)
        #expect(word(96) == 7)
        #expect(word(100) == 1 << 10)
        #expect(word(106 + 3) == 1 << 10)
    }

    @Test("what was claimed with its line high is due for a receiver that does not look again")
    func claimedStaysDue() throws {
        device.write(4 * 10, 1)
        enable([10], context: 1)
        device.line(10).set(true)
        #expect(claim(1) == 10)
        let body = try encode(device, .qemu7_2)
        #expect(body[400..<404].elementsEqual([0, 0, 4, 0]))  // pending
        #expect(body[412..<416].elementsEqual([0, 0, 4, 0]))  // claimed
    }

    @Test("after a load the outputs follow the state and the lines")
    func load() throws {
        device.write(4 * 10, 1)
        enable([10], context: 3)
        device.line(10).set(true)
        let body = try encode(device, .native)
        let probes = (0..<4).map { _ in LineProbe() }
        let copy = PLIC(contextLines: probes.map(\.line))
        try decode(body, into: copy, .native)
        copy.line(10).set(true)
        copy.refresh()
        #expect(probes.map(\.level) == [false, false, false, true])
        #expect(try encode(copy, .native) == body)
    }

    @Test("a state that the registers could not hold is refused", arguments: [(3, 8), (387, 9), (403, 1), (415, 1)])
    func invalid(position: Int, value: UInt8) throws {
        var body = try encode(device, .qemu7_2)
        body[position] = value
        #expect(throws: StateError.self) { try decode(body, into: device, .qemu7_2) }
    }

    @Test("reset clears registers and keeps the lines")
    func reset() {
        device.write(4 * 10, 1)
        enable([10], context: 1)
        device.line(10).set(true)
        device.reset()
        #expect(outputs.allSatisfy { !$0.level })
        device.write(4 * 10, 1)
        enable([10], context: 1)
        #expect(outputs[1].level)
    }
}
