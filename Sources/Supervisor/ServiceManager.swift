import Glibc
import LinuxCalls

/// What systemd is told, when it asked to be: the service is ready, and which process is its main one.
/// Source: sd_notify(3); `NOTIFY_SOCKET` names a datagram socket, `@` standing for the abstract space.
enum ServiceManager {
    /// Whether somebody listens.
    static var isPresent: Bool { unsafe getenv("NOTIFY_SOCKET") != nil }

    /// Says that this process is the main one. Failure is nobody's loss.
    static func tell(isReady: Bool) {
        guard let value = unsafe getenv("NOTIFY_SOCKET"), let path = unsafe String(validatingCString: value) else {
            return
        }
        let text = (isReady ? "READY=1\n" : "") + "MAINPID=\(getpid())\n"
        try? DatagramSocket.send(Array(text.utf8), to: path)
    }
}
