import ComponentState
import DeviceModel
import GuestTime
import PlatformDevices
import Testing

@Suite("ACLINT") struct ACLINTTests {
    let scheduler = ManualScheduler()
    let software = [LineProbe(), LineProbe()]
    let timer = [LineProbe(), LineProbe()]
    let device: ACLINT

    init() {
        device = ACLINT(scheduler: scheduler, softwareLines: software.map(\.line), timerLines: timer.map(\.line))
        device.reset()
    }

    @Test("after reset the timer interrupt is pending, because 0 >= 0")
    func resetState() {
        #expect(timer.map(\.level) == [true, true])
        #expect(software.map(\.level) == [false, false])
        #expect(device.read(0xbff8, .eight) == 0)
    }

    @Test("mtime counts at 10 MHz and is readable in halves")
    func time() {
        scheduler.advance(to: 0x1_2345_6789 * 100 + 99)
        #expect(device.read(0xbff8, .eight) == 0x1_2345_6789)
        #expect(device.read(0xbff8) == 0x2345_6789)
        #expect(device.read(0xbffc) == 1)
    }

    @Test("a compare value in the future lowers the line until its time")
    func compare() {
        device.write(0x4008, 1000, .eight)
        #expect(timer.map(\.level) == [true, false])
        #expect(scheduler.armed == [100_000])
        scheduler.advance(to: 99_999)
        #expect(!timer[1].level)
        scheduler.advance(to: 100_000)
        #expect(timer[1].level)
        #expect(device.read(0x4008, .eight) == 1000)
    }

    @Test("mtimecmp is writable in halves; all ones never fires")
    func halves() {
        device.write(0x4000, 0xffff_ffff)
        device.write(0x4004, 0xffff_ffff)
        #expect(device.read(0x4000, .eight) == .max)
        #expect(!timer[0].level)
        #expect(scheduler.armed.isEmpty)
        scheduler.advance(to: 1 << 62)
        #expect(!timer[0].level)
    }

    @Test("writing mtime moves the counter and with it the interrupt")
    func setTime() {
        device.write(0x4000, 5000, .eight)
        scheduler.advance(to: 1000)
        device.write(0xbff8, 4990, .eight)
        #expect(device.read(0xbff8, .eight) == 4990)
        #expect(!timer[0].level)
        scheduler.advance(to: 2000)
        #expect(timer[0].level)
        device.write(0xbff8, 0, .eight)
        #expect(!timer[0].level)
    }

    @Test("bit 0 of msip is the software interrupt of its hart")
    func softwareInterrupt() {
        device.write(4, 0xffff_ffff)
        #expect(software.map(\.level) == [false, true])
        #expect(device.read(4) == 1)
        device.write(4, 0xffff_fffe)
        #expect(software.map(\.level) == [false, false])
        device.write(8, 1)  // No such hart.
        #expect(device.read(8) == 0)
    }

    @Test("accesses of other widths and places read as zero and change nothing")
    func reserved() {
        scheduler.advance(to: 1 << 40)
        #expect(device.read(0xbff8, .one) == 0)
        #expect(device.read(0xbffa, .four) == 0)
        #expect(device.read(0x4010, .eight) == 0)
        #expect(device.read(0xc000, .eight) == 0)
        device.write(0xffff, 1, .one)
        device.write(0xfff8, 1, .eight)
    }

    @Test("version 1 is the compare values alone")
    func versionOne() throws {
        device.write(0x4000, 0x1122_3344_5566_7788, .eight)
        for layout in [StateLayout.qemu7_2, .qemu10_0, .native] {
            #expect(try encode(device, layout) == bytes("11 22 33 44 55 66 77 88 00 00 00 00 00 00 00 00"))
        }
    }

    @Test("version 3 adds the counter's offset and each expiry")
    func versionThree() throws {
        scheduler.advance(to: 1000)
        device.write(0xbff8, 30, .eight)
        device.write(0x4000, 40, .eight)
        let body = try encode(device, .qemu11_1)
        let offset = bytes("00 00 00 00 00 00 00 14")
        let compare = bytes("00 00 00 00 00 00 00 28 00 00 00 00 00 00 00 00")
        let expiry = bytes("00 00 00 00 00 00 07 d0 ff ff ff ff ff ff ff ff")
        #expect(body == offset + compare + expiry)
        let other = ManualScheduler()
        other.advance(to: 1000)
        let probes = [LineProbe(), LineProbe()]
        let copy = ACLINT(scheduler: other, softwareLines: probes.map(\.line), timerLines: probes.map(\.line))
        try decode(body, into: copy, .qemu11_1)
        copy.refresh()
        #expect(copy.read(0xbff8, .eight) == 30)
        #expect(!probes[0].level)
        other.advance(to: 2000)
        #expect(probes[0].level)
    }

    @Test("an offset travels in the native layout and is refused where it would be lost")
    func offsetWithoutField() throws {
        device.write(0xbff8, 77, .eight)
        let body = try encode(device, .native)
        #expect(throws: StateError.self) { try encode(device, .qemu10_0) }
        let copy = ACLINT(
            scheduler: ManualScheduler(), softwareLines: software.map(\.line), timerLines: timer.map(\.line))
        try decode(body, into: copy, .native)
        #expect(copy.read(0xbff8, .eight) == 77)
    }

    @Test("loading arms the timer from the compare value and the clock")
    func rearms() throws {
        try decode(bytes("00 00 00 00 00 00 03 e8 ff ff ff ff ff ff ff ff"), into: device, .qemu7_2)
        device.refresh()
        #expect(timer.map(\.level) == [false, false])
        #expect(scheduler.armed == [100_000])
    }

    @Test("a state cut short changes nothing", arguments: 0..<11)
    func cut(length: Int) {
        device.write(0x4000, 5, .eight)
        #expect(throws: StateError.self) {
            try decode(Array(repeating: 0xee, count: length), into: device, .qemu7_2)
        }
        #expect(device.read(0x4000, .eight) == 5)
    }
}
