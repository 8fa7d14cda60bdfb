import LinuxCalls
import Synchronization

/// A descriptor that an event loop watches for what is wanted at the moment, and not at all when that is nothing, so that
/// a peer that hung up does not keep the loop busy while nobody looks.
final class WatchedDescriptor: Sendable {
    private struct State {
        var wanted: ReadyEvents = []
        var watched: ReadyEvents = []
        var token: EventLoop.Token?
        var isHeld = false
        var isEnded = false
        var isChanging = false
    }

    private let loop: EventLoop
    let descriptor: OwnedDescriptor
    private let handler: @Sendable (ReadyEvents) -> Void
    private let state = Mutex(State())

    /// - Parameter handler: Called on the loop's thread; must not keep the owner alive.
    init(_ descriptor: OwnedDescriptor, loop: EventLoop, handler: @escaping @Sendable (ReadyEvents) -> Void) {
        self.descriptor = descriptor
        self.loop = loop
        self.handler = handler
    }

    deinit {
        if let token = state.withLock({ $0.token }) {
            let loop = loop
            loop.perform { loop.remove(token) }
        }
    }

    /// Adds to what is wanted. From any thread, also with locks held that the handler takes.
    func want(_ events: ReadyEvents) { change { $0.wanted.formUnion(events) } }

    func unwant(_ events: ReadyEvents) { change { $0.wanted.subtract(events) } }

    /// Watches nothing until ``release()``; what is wanted is remembered.
    func hold() { change { $0.isHeld = true } }
    func release() { change { $0.isHeld = false } }

    /// Watches nothing any more.
    func end() { change { $0.isEnded = true } }

    private func change(_ body: (inout State) -> Void) {
        let isInTurn = loop.isLoopThread
        let mustApply = state.withLock { state in
            body(&state)
            let target = state.isHeld || state.isEnded ? [] : state.wanted
            // In the loop's turn at once, also when somebody has asked for a change later.
            guard target != state.watched, isInTurn || !state.isChanging else { return false }
            state.isChanging = true
            return true
        }
        guard mustApply else { return }
        if isInTurn { apply() } else { loop.perform { [weak self] in self?.apply() } }
    }

    /// On the loop's thread only: elsewhere, removing would wait for handlers.
    private func apply() {
        let (target, token) = state.withLock { state in
            state.isChanging = false
            state.watched = state.isHeld || state.isEnded ? [] : state.wanted
            return (state.watched, state.token)
        }
        var newToken = token
        do {
            switch (token, target.isEmpty) {
            case (nil, true): break
            case (nil, false): newToken = try loop.watch(descriptor, for: target, handler)
            case (let token?, true):
                loop.remove(token)
                newToken = nil
            case (let token?, false): try loop.change(token, to: target)
            }
        } catch {
            newToken = nil  // a regular file or the like: never ready, as far as epoll is concerned
        }
        state.withLock { $0.token = newToken }
    }
}
