import ComponentState
import DeviceModel
import PlatformDevices
import Synchronization
import Testing

@Suite("Goldfish RTC") struct GoldfishRTCTests {
    final class WallClock: Sendable {
        let now = Atomic<UInt64>(1_700_000_000_123_456_789)
    }
    let scheduler = ManualScheduler()
    let wall = WallClock()
    let line = LineProbe()
    let rtc: GoldfishRTC

    init() {
        let wall = wall
        rtc = GoldfishRTC(
            scheduler: scheduler, interrupt: line.line, hostTime: { wall.now.load(ordering: .relaxed) })
        rtc.reset()
    }

    private var time: UInt64 {
        let low = rtc.read(0x00)
        return rtc.read(0x04) << 32 | low
    }

    private func setAlarm(_ time: UInt64) {
        rtc.write(0x0c, time >> 32)
        rtc.write(0x08, time & 0xffff_ffff)
    }

    private func pass(_ nanoseconds: Int64) {
        wall.now.wrappingAdd(UInt64(nanoseconds), ordering: .relaxed)
        scheduler.advance(to: scheduler.clock.nanoseconds + nanoseconds)
    }

    @Test("it tells the host's time; the upper half is latched by reading the lower")
    func tells() {
        #expect(time == 1_700_000_000_123_456_789)
        _ = rtc.read(0x00)
        wall.now.store(1 << 60, ordering: .relaxed)
        #expect(rtc.read(0x04) == 1_700_000_000_123_456_789 >> 32)
    }

    @Test(
        "the heartbeat guest reads it right though another hart reads it in between, where the lower half begins anew",
        arguments: [0, 1, 2])
    func readByTwo(gap: Int) {
        let before: UInt64 = 0x17_ffff_fffe
        wall.now.store(before, ordering: .relaxed)
        var reads = 0
        // The other hart comes once, so many of our accesses after the first, when the lower half has begun anew.
        func other() {
            if reads == gap {
                wall.now.store(before + 9, ordering: .relaxed)
                _ = rtc.read(0x00)
            }
            reads += 1
        }
        let time = readLatchedClock(
            low: {
                other()
                return UInt32(rtc.read(0x00))
            },
            high: {
                other()
                return UInt32(rtc.read(0x04))
            })
        #expect((before...before + 9).contains(time), "\(time) is not between \(before) and \(before + 9)")
    }

    @Test("the guest can set it, and it runs on from there")
    func set() {
        rtc.write(0x04, 0x10)
        rtc.write(0x00, 0x1234)
        #expect(time == 0x10_0000_1234)
        pass(1000)
        #expect(time == 0x10_0000_1234 + 1000)
    }

    @Test("the alarm interrupts at its time, once, if enabled")
    func alarm() {
        rtc.write(0x10, 1)
        setAlarm(time + 5000)
        #expect(rtc.read(0x18) == 1)
        pass(4999)
        #expect(!line.level)
        pass(1)
        #expect(line.level)
        #expect(rtc.read(0x18) == 0)
        rtc.write(0x1c, 0)
        #expect(!line.level)
    }

    @Test("an alarm in the past rings at once; a cleared one never")
    func edges() {
        rtc.write(0x10, 1)
        setAlarm(time - 1)
        #expect(line.level)
        rtc.write(0x1c, 0)
        setAlarm(time + 100)
        rtc.write(0x14, 0)
        pass(1000)
        #expect(!line.level && rtc.read(0x18) == 0)
    }

    @Test("an interrupt that rang while disabled shows when enabled")
    func disabled() {
        setAlarm(time - 1)
        #expect(!line.level)
        rtc.write(0x10, 1)
        #expect(line.level)
    }

    @Test("after a pause the alarm follows the wall clock, not the guest's")
    func pause() {
        rtc.write(0x10, 1)
        setAlarm(time + 5000)
        wall.now.wrappingAdd(6000, ordering: .relaxed)  // The guest stood still.
        rtc.resume()
        #expect(line.level)
    }

    @Test("the section is QEMU's 40 bytes and comes back equal", arguments: StateLayout.allCases)
    func wire(layout: StateLayout) throws {
        setAlarm(time + 0x1111)
        rtc.write(0x10, 1)
        rtc.write(0x00, 5)
        let body = try encode(rtc, layout)
        #expect(body.count == 40 && body.prefix(8).allSatisfy { $0 == 0 })
        let wall = wall
        let copy = GoldfishRTC(
            scheduler: ManualScheduler(), interrupt: line.line, hostTime: { wall.now.load(ordering: .relaxed) })
        try decode(body, into: copy, layout)
        #expect(try encode(copy, layout) == body)
        #expect(copy.read(0) == rtc.read(0))
    }

    @Test("flags other than 0 and 1 are refused", arguments: [19, 23, 27])
    func invalid(position: Int) throws {
        var body = try encode(rtc, .qemu7_2)
        body[position] = 2
        #expect(throws: StateError.self) { try decode(body, into: rtc, .qemu7_2) }
    }
}
