/// Memory that a device's worker copies through; kept, because fresh pages cost more than the copy.
@safe final class WorkBuffer: Sendable {
    // SAFETY: allocated once and freed in deinit; only the device's one worker thread touches the bytes.
    nonisolated(unsafe) let bytes: UnsafeMutableRawBufferPointer

    init(byteCount: Int) { unsafe bytes = .allocate(byteCount: byteCount, alignment: 4096) }

    deinit { unsafe bytes.deallocate() }
}
