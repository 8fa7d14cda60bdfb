import LinuxCalls
import Synchronization

/// What processors ask of the machine's owner while they run: power-off, reset, help.
final class RequestQueue: Sendable {
    private let waiting = Mutex<[VirtMachine.Request]>([])
    private let attention = WaitWord()
    private let ended = Atomic<Bool>(false)

    /// Most requests kept; a guest that asks more often has been heard.
    private static let limit = 16

    func add(_ request: VirtMachine.Request) {
        waiting.withLock { if $0.count < Self.limit { $0.append(request) } }
        attention.add(1)
    }

    func takeAll() -> [VirtMachine.Request] {
        waiting.withLock { requests in
            defer { requests = [] }
            return requests
        }
    }

    /// Waits for a request; false when there will be none any more.
    func wait() -> Bool {
        while true {
            let seen = attention.load()
            if ended.load(ordering: .acquiring) { return false }
            if waiting.withLock({ !$0.isEmpty }) { return true }
            attention.wait(while: seen)
        }
    }

    func end() {
        ended.store(true, ordering: .releasing)
        attention.add(1)
    }
}
