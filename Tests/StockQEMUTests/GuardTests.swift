import LinuxCalls
import StockQEMU
import Synchronization
import Testing

@Suite("The guard of an upgrade") struct GuardTests {
    /// Runs a guard on what is sent, and answers whether it ended by itself while the connection stayed open.
    private func ends(after messages: [String]) throws -> Bool {
        let (ours, guards) = try StreamSocket.pair()
        let done = HostSemaphore()
        let outcomes = Mutex<[Rescue.Outcome]>([])
        let thread = try HostThread(name: "guard") {
            if let outcome = try? ReplacementGuard.serve(guards) { outcomes.withLock { $0.append(outcome) } }
            done.signal()
        }
        for message in messages { try StreamSocket.sendAll(Array(message.utf8), to: ours) }
        let hasEnded = done.wait(timeoutNanoseconds: hasLastWord(messages) ? 20_000_000_000 : 300_000_000)
        StreamSocket.shutDown(ours)
        thread.join()
        #expect(outcomes.withLock { $0 }.isEmpty)
        return hasEnded
    }

    private func hasLastWord(_ messages: [String]) -> Bool { messages.last == "d" }

    @Test("when all is over it ends, though the upgrade still holds its connection")
    func ends() throws { #expect(try ends(after: ["{\"token\":\"d\"}\n", "{}\n", "d"])) }

    @Test("a letter within what it is told is not the last word")
    func letters() throws { #expect(try !ends(after: ["{\"token\":\"abcd"])) }
}
