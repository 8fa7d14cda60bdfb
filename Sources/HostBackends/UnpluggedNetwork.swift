package import DeviceModel

/// A network card whose cable is not plugged in: what is sent is lost, and nothing comes.
@safe package final class UnpluggedNetwork: NetworkBackend, TransferableBackend {
    static let kind = "unplugged"

    package init() {}

    package func send(_ frame: UnsafeRawBufferPointer) -> Bool { true }
    package func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void
    ) {}
    package func receiveIsWanted() {}
    package func quiesce() {}
    package func resume() {}
    package func handOver() throws(BackendError) -> BackendHandover { BackendHandover(kind: Self.kind) }
}
