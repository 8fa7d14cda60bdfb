import Glibc
import LinuxCalls

/// What systemd is told, when it asked to be: the service is ready, and which process is its main one.
/// Source: sd_notify(3); `NOTIFY_SOCKET` names a datagram socket, `@` standing for the abstract space.
enum ServiceManager {
    private static var path: String? {
        guard let value = unsafe getenv("NOTIFY_SOCKET") else { return nil }
        return unsafe String(validatingCString: value)
    }

    /// Whether somebody listens.
    static var isPresent: Bool { path != nil }

    /// Says that this process is the main one. Failure is nobody's loss.
    static func tell(isReady: Bool) {
        guard let path else { return }
        send((isReady ? "READY=1\n" : "") + "MAINPID=\(getpid())\n", to: path, limitMilliseconds: 1000)
    }

    /// Returns when everything that was said before has been read, whoever said it, or when the time is over, as with one who
    /// does not know this. Source: sd_notify_barrier(3).
    static func awaitReading(limitMilliseconds: CInt) {
        guard let path, let end = barrier(path, limitMilliseconds) else { return }
        // The other end closes when the manager has come so far.
        _ = try? end.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: limitMilliseconds)
    }

    private static func barrier(_ path: String, _ limitMilliseconds: CInt) -> OwnedDescriptor? {
        guard let (reading, writing) = try? OwnedDescriptor.pipe() else { return nil }
        return send("BARRIER=1", to: path, with: writing, limitMilliseconds: limitMilliseconds) ? reading : nil
    }

    /// A manager that is busy has so and so many messages waiting for it, and no room for more.
    @discardableResult
    private static func send(
        _ text: String, to path: String, with descriptor: OwnedDescriptor? = nil, limitMilliseconds: CInt
    ) -> Bool {
        for _ in 0...limitMilliseconds {
            do throws(SystemCallError) {
                try DatagramSocket.send(Array(text.utf8), to: path, with: descriptor)
                return true
            } catch {
                guard error.errno == .wouldBlock else { return false }
                usleep(1000)
            }
        }
        return false
    }
}
