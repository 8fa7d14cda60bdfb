import CLinuxShims
import Glibc
import SystemPackage

/// The process that a shell waits for while the guest's process changes under it.
///
/// ``fork()`` splits the process in two. The child goes on and becomes the first runner; the parent stays behind, small,
/// passes signals on, restores the terminal, and ends with the status of the last runner. Which process runs the guest now
/// is a word in shared memory that each runner writes when the guest is its own.
package final class ProcessKeeper: Sendable {
    /// The memory with the word; travels to each successor.
    package let file: OwnedDescriptor
    private let runner: WaitWord

    /// The keeper's word as a successor received it.
    package init(adopting file: OwnedDescriptor) throws(SystemCallError) {
        self.file = file
        runner = WaitWord(in: try OwnedMapping(byteCount: hostPageSize, descriptor: file), offset: 0)
    }

    /// This process runs the guest from now on.
    package func becomeRunner() { runner.store(UInt32(getpid())) }

    /// The process that runs the guest, as it said.
    package var runnerProcess: CInt { CInt(truncatingIfNeeded: runner.load()) }

    /// Signals that the keeper passes on.
    private static let passedOn = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH]

    /// Splits the process; call it first thing, while there is one thread. Returns in the child only; the parent exits
    /// with the last runner's status (128 + signal if it was killed).
    package static func fork() throws(SystemCallError) -> ProcessKeeper {
        let file = try MemoryFile.create(name: "sidestep-keeper", byteCount: hostPageSize)
        let keeper = try ProcessKeeper(adopting: file)
        _ = try retrying("prctl(PR_SET_CHILD_SUBREAPER)") { shim_become_subreaper() }
        // Blocked before the fork, so that no signal falls between the two.
        var watched = sigset_t()
        var before = sigset_t()
        unsafe sigemptyset(&watched)
        for signal in passedOn + [SIGCHLD] { unsafe sigaddset(&watched, signal) }
        unsafe pthread_sigmask(SIG_BLOCK, &watched, &before)
        let child = try retrying("fork") { shim_fork() }
        if child == 0 {
            unsafe pthread_sigmask(SIG_SETMASK, &before, nil)
            keeper.becomeRunner()
            return keeper
        }
        keeper.keep(first: child, watched)
    }

    /// The parent's life.
    private func keep(first: CInt, _ watched: sigset_t) -> Never {
        var watched = watched
        var terminal = termios()
        let hasTerminal = unsafe tcgetattr(0, &terminal) == 0
        var current = first
        var lastStatus: CInt = 0
        while true {
            // Reap whoever ended; remember how the runner ended.
            while true {
                var status: CInt = 0
                let ended = unsafe waitpid(-1, &status, WNOHANG)
                if ended > 0 {
                    if ended == current || ended == runnerProcess { lastStatus = status }
                    continue
                }
                if ended < 0 && errno == ECHILD {
                    if hasTerminal { unsafe _ = tcsetattr(0, TCSANOW, &terminal) }
                    exit(
                        shim_wait_exited(lastStatus) != 0
                            ? shim_wait_exit_status(lastStatus) : 128 + shim_wait_signal(lastStatus))
                }
                break
            }
            let said = runnerProcess
            if said != 0 { current = said }
            // A successor says so without a signal to us: look again now and then while the old one is gone.
            var limit = timespec(tv_sec: 0, tv_nsec: 50_000_000)
            let isGone = kill(current, 0) != 0
            var information = unsafe siginfo_t()
            let signal =
                unsafe isGone ? sigtimedwait(&watched, &information, &limit) : sigwaitinfo(&watched, &information)
            // What the terminal sends (si_code SI_KERNEL) it sends to the whole process group: the runner has it already.
            if signal > 0, signal != SIGCHLD, unsafe information.si_code != 0x80 {
                let said = runnerProcess
                _ = kill(said != 0 ? said : current, signal)
            }
        }
    }
}
