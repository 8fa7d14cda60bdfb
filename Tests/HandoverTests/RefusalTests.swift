import LinuxCalls
import MigrationChannels
import Testing

/// A guest whose state has no end.
private final class EndlessGuest: HandoverSubject {
    private(set) var isResumed = false

    func describe() throws -> HandoverDescription { HandoverDescription(configuration: [], blocks: [], resources: []) }
    func pause() throws {}
    func save(sendPart: ([UInt8]) throws(HandoverError) -> Void) throws -> HandoverState {
        while true { try sendPart([UInt8](repeating: 1, count: 100_000)) }
    }
    func resume() throws { isResumed = true }
    func release() { Issue.record("the guest was given away") }
}

@Suite("Refusals of the hand-over's state") struct RefusalTests {
    @Test("a destination that refuses a part while others still come is heard, and the guest resumes")
    func part() throws {
        let (near, far) = try StreamSocket.pair()
        let destination = try HostThread(name: "destination") {
            var driver = HandoverDestination(socket: far, program: "test")
            do {
                _ = try driver.receiveDescription()
                _ = try driver.receiveControl()
                _ = try driver.receiveState { _ in throw HandoverError(.incompatible, "not this part") }
                Issue.record("the state had an end")
            } catch let error as HandoverError {
                _ = driver.refuse(error)
            } catch { Issue.record(error) }
            StreamSocket.shutDown(far)
        }
        let guest = EndlessGuest()
        let outcome = HandoverSource(socket: near, destination: try .event()).run(guest)
        destination.join()
        guard case .stayed(let error) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(error.code == .refused && "\(error)".contains("not this part"))
        #expect(guest.isResumed)
    }

    @Test("a state in parts is refused by who knows none")
    func noParts() throws {
        let (near, far) = try StreamSocket.pair()
        let destination = try HostThread(name: "destination") {
            var driver = HandoverDestination(socket: far, program: "test")
            do throws(HandoverError) {
                _ = try driver.receiveDescription()
                _ = try driver.receiveControl()
                _ = try driver.receiveState()
                Issue.record("a part was taken for a state")
            } catch { _ = driver.refuse(error) }
            StreamSocket.shutDown(far)
        }
        let guest = EndlessGuest()
        let outcome = HandoverSource(socket: near, destination: try .event()).run(guest)
        destination.join()
        guard case .stayed(let error) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect("\(error)".contains("no parts"))
        #expect(guest.isResumed)
    }
}
