import LinuxCalls
import MigrationChannels
import Testing

/// A guest whose state has no end.
private final class EndlessGuest: HandoverSubject {
    private(set) var isResumed = false

    func describe() throws -> HandoverDescription { HandoverDescription(configuration: [], blocks: [], resources: []) }
    func pause() throws {}
    func save(sendPart: (HandoverPart) throws(HandoverError) -> Void) throws -> HandoverState {
        while true { try sendPart(.plain([UInt8](repeating: 1, count: 100_000))) }
    }
    func resume() throws { isResumed = true }
    func release() { Issue.record("the guest was given away") }
}

@Suite("Refusals of the hand-over's state") struct RefusalTests {
    /// Hands an endless state to a destination that takes it by `receive`, and answers why the guest stayed.
    private func refusal(
        by receive: @escaping @Sendable (inout HandoverDestination) throws(HandoverError) -> HandoverState
    ) throws -> HandoverError {
        let (near, far) = try StreamSocket.pair()
        let destination = try HostThread(name: "destination") {
            var driver = HandoverDestination(socket: far, program: "test")
            do throws(HandoverError) {
                _ = try driver.receiveDescription()
                _ = try driver.receiveControl()
                _ = try receive(&driver)
                Issue.record("the state had an end")
            } catch { _ = driver.refuse(error) }
            StreamSocket.shutDown(far)
        }
        let guest = EndlessGuest()
        let outcome = HandoverSource(socket: near, destination: try .event()).run(guest)
        destination.join()
        #expect(guest.isResumed)
        guard case .stayed(let error) = outcome else {
            Issue.record("\(outcome)")
            throw HandoverError(.malformed, "the guest did not stay")
        }
        return error
    }

    @Test("a destination that refuses a part while others still come is heard, and the guest resumes")
    func part() throws {
        let error = try refusal { (driver) throws(HandoverError) in
            try driver.receiveState { _ in throw HandoverError(.incompatible, "not this part") }
        }
        #expect(error.code == .refused && "\(error)".contains("not this part"))
    }

    @Test("a state in parts is refused by who knows none")
    func noParts() throws {
        let error = try refusal { (driver) throws(HandoverError) in try driver.receiveState() }
        #expect("\(error)".contains("no parts"))
    }
}
