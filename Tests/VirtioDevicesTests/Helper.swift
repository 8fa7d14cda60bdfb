import LinuxCalls

/// A thread for something that waits.
struct Helper {
    private let thread: HostThread
    init(_ body: @escaping @Sendable () -> Void) throws { thread = try HostThread(name: "helper", body) }
    func join() { thread.join() }
}
