import LinuxCalls
import Synchronization

/// What happened to the machine, told in the order in which it happened.
///
/// Events are added under the life-cycle lock, which gives them their order, and told outside of it, one at a time, by whoever
/// comes to tell: an observer may call back into the life cycle.
final class EventQueue: Sendable {
    private struct State {
        var waiting: [MachineEvent] = []
        /// Counts events: those that were added, and those whose telling has begun.
        var added: UInt64 = 0
        var begun: UInt64 = 0
        /// The thread that is telling one now; 0 when nobody is.
        var teller: CInt = 0
    }

    private let state = Mutex(State())
    /// Changes when an event has been told.
    private let progress = WaitWord()
    private let observer: @Sendable (MachineEvent) -> Void

    init(observer: @escaping @Sendable (MachineEvent) -> Void) { self.observer = observer }

    /// Only under the life-cycle lock.
    func add(_ event: MachineEvent) {
        state.withLock { state in
            state.waiting.append(event)
            state.added += 1
        }
    }

    private enum Step {
        case tell(MachineEvent, outerTeller: CInt)
        case wait
        case done
    }

    /// Comes back when everything has been told that was added before. Not under the life-cycle lock.
    ///
    /// Called by an observer, it tells what waits before that observer's own event is done with. Another thread waits for the
    /// observer, so an observer must not wait for one that changes the life cycle.
    func tell() {
        let thread = HostThread.currentIdentifier
        let wanted = state.withLock { $0.added }
        while true {
            let seen = progress.load()
            let step = state.withLock { state -> Step in
                let mayTell = state.teller == 0 || state.teller == thread
                guard state.begun < wanted else { return mayTell ? .done : .wait }
                guard mayTell else { return .wait }
                defer { state.teller = thread }
                state.begun += 1
                return .tell(state.waiting.removeFirst(), outerTeller: state.teller)
            }
            switch step {
            case .done: return
            case .wait: progress.wait(while: seen)
            case .tell(let event, let outerTeller):
                observer(event)
                state.withLock { $0.teller = outerTeller }
                progress.add(1)
            }
        }
    }
}
