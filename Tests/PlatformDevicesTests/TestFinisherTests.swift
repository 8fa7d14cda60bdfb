import DeviceModel
import PlatformDevices
import Synchronization
import Testing

@Suite("Test finisher") struct TestFinisherTests {
    @Test("each value asks for what it says")
    func requests() {
        let seen = Mutex<[TestFinisher.Request]>([])
        let device = TestFinisher { request in seen.withLock { $0.append(request) } }
        device.write(0, 0x5555)
        device.write(0, 0x7777)
        device.write(0, 0x002a_3333)
        device.write(0, 0x5555, .two)
        #expect(seen.withLock { $0 } == [.powerOff, .reset, .fail(code: 42), .powerOff])
    }

    @Test("other values, places and widths ask for nothing")
    func ignored() {
        let device = TestFinisher { _ in Issue.record("nothing was asked") }
        device.write(0, 0)
        device.write(0, 0x5556)
        device.write(4, 0x5555)
        device.write(0, 0x5555, .one)
        device.write(0, 0x5555, .eight)
        #expect(device.read(0) == 0)
    }
}
