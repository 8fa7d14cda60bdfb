package import ComponentState
package import DeviceModel
package import GuestMemory
import Synchronization

/// The firmware configuration device: numbered items that the guest selects and reads, byte by byte or by DMA.
///
/// Source: QEMU's published specification "QEMU Firmware Configuration (fw_cfg) Device".
package final class FirmwareConfiguration: BusDevice, StatefulComponent {
    package static let byteCount: UInt64 = 0x18

    /// Keys of the items that do not stand in the file directory.
    package enum Key {
        package static let signature: UInt16 = 0x00
        package static let identifier: UInt16 = 0x01
        package static let ramByteCount: UInt16 = 0x03
        package static let processorCount: UInt16 = 0x05
        package static let processorCountMax: UInt16 = 0x0f
        package static let fileDirectory: UInt16 = 0x19
        package static let firstFile: UInt16 = 0x20
    }

    /// Most files the directory may list.
    package static let fileCountMax = 256

    private enum Control {
        static let error: UInt32 = 0x01
        static let read: UInt32 = 0x02
        static let skip: UInt32 = 0x04
        static let select: UInt32 = 0x08
        static let write: UInt32 = 0x10
    }

    /// What a reader of the DMA register finds there: "QEMU CFG".
    private static let dmaSignature: UInt64 = 0x5145_4d55_2043_4647

    package let name = "fw-cfg"
    package let sectionName = "fw_cfg"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 2...2

    private struct State {
        var key: UInt16 = 0
        var offset: UInt32 = 0
        var dmaAddress: UInt64 = 0

        mutating func select(_ key: UInt16) {
            self.key = key
            offset = 0
        }
    }

    private let state = Mutex(State())
    private let items: [UInt16: [UInt8]]
    private let memory: GuestMemory

    /// - Parameters:
    ///   - memory: Where DMA goes.
    ///   - processorCount: Harts of the machine.
    ///   - ramByteCount: Bytes of RAM.
    ///   - files: Named items, listed in the directory in the order of their names.
    package init(memory: GuestMemory, processorCount: Int, ramByteCount: UInt64, files: [String: [UInt8]] = [:]) {
        precondition(files.count <= Self.fileCountMax, "the directory has room for \(Self.fileCountMax) files")
        self.memory = memory
        func littleEndian<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
            (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> Value($0 * 8)) }
        }
        func bigEndian<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] { littleEndian(value).reversed() }
        var items: [UInt16: [UInt8]] = [
            Key.signature: Array("QEMU".utf8),
            Key.identifier: littleEndian(UInt32(0x3)),  // The register interface, and DMA.
            Key.ramByteCount: littleEndian(ramByteCount),
            Key.processorCount: littleEndian(UInt16(truncatingIfNeeded: processorCount)),
            Key.processorCountMax: littleEndian(UInt16(truncatingIfNeeded: processorCount)),
        ]
        var directory = bigEndian(UInt32(files.count))
        for (index, file) in files.sorted(by: { $0.key < $1.key }).enumerated() {
            let key = Key.firstFile + UInt16(index)
            let name = Array(file.key.utf8.prefix(55))
            items[key] = file.value
            directory += bigEndian(UInt32(file.value.count)) + bigEndian(key) + [0, 0]
            directory += name + Array(repeating: 0, count: 56 - name.count)
        }
        items[Key.fileDirectory] = directory
        self.items = items
    }

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        if offset < 8 {
            // The data register is a string of bytes, first byte first, at any width.
            return state.withLock { state in
                var value: UInt64 = 0
                for index in 0..<width.rawValue {
                    value |= UInt64(nextByte(&state)) << UInt64(index * 8)
                }
                return value
            }
        }
        if offset >= 16, offset % UInt64(width.rawValue) == 0 {
            let bytes = (0..<8).map { UInt8(truncatingIfNeeded: Self.dmaSignature >> UInt64(56 - $0 * 8)) }
            return (0..<width.rawValue).reduce(0) { $0 | UInt64(bytes[Int(offset) - 16 + $1]) << UInt64($1 * 8) }
        }
        return 0
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        switch (offset, width) {
        case (8, .two):
            state.withLock { $0.select(UInt16(truncatingIfNeeded: value).byteSwapped) }
        case (16, .eight): transfer(at: value.byteSwapped)
        case (16, .four):
            state.withLock { $0.dmaAddress = UInt64(UInt32(truncatingIfNeeded: value).byteSwapped) << 32 }
        case (20, .four):
            let address = state.withLock { $0.dmaAddress | UInt64(UInt32(truncatingIfNeeded: value).byteSwapped) }
            transfer(at: address)
        default: return  // Writing items through the data register ended long ago.
        }
    }

    /// Past the end, and where there is no item, everything reads as zero.
    private func nextByte(_ state: inout State) -> UInt8 {
        guard let item = items[state.key], state.offset < UInt32(clamping: item.count) else { return 0 }
        defer { state.offset += 1 }
        return item[Int(state.offset)]
    }

    // MARK: DMA

    /// Runs the request whose record (control, length, address; big-endian) is at `address`.
    private func transfer(at address: UInt64) {
        state.withLock { state in
            state.dmaAddress = 0
            guard let record = try? memory.bytes(at: address, count: 16) else { return }
            func bigEndian(_ range: Range<Int>) -> UInt64 { record[range].reduce(0) { $0 << 8 | UInt64($1) } }
            let control = UInt32(bigEndian(0..<4))
            let byteCount = UInt32(bigEndian(4..<8))
            let target = bigEndian(8..<16)
            if control & Control.select != 0 { state.select(UInt16(control >> 16)) }
            var result: UInt32 = 0
            if control & Control.read != 0 {
                if !read(byteCount, to: target, &state) { result = Control.error }
            } else if control & Control.write != 0 {
                result = Control.error  // Every item is read-only.
            } else if control & Control.skip != 0 {
                state.offset = UInt32(clamping: UInt64(state.offset) + UInt64(byteCount))
            }
            try? memory.store(address, result.bigEndian)
        }
    }

    /// False when the guest named an address without RAM. What lies behind an item's end arrives as zeros.
    private func read(_ byteCount: UInt32, to target: UInt64, _ state: inout State) -> Bool {
        let item = items[state.key] ?? []
        var remaining = Int(byteCount)
        var address = target
        while remaining > 0 {
            let start = min(Int(state.offset), item.count)
            let piece = min(remaining, 64 << 10)
            let fromItem = min(piece, item.count - start)
            let bytes = Array(item[start..<start + fromItem]) + Array(repeating: 0, count: piece - fromItem)
            do { try memory.write(address, bytes) } catch { return false }
            state.offset += UInt32(fromItem)
            address &+= UInt64(piece)
            remaining -= piece
        }
        return true
    }

    // MARK: Life cycle

    package func reset() { state.withLock { $0 = State() } }

    // MARK: State

    package var canGoAhead: Bool { true }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 2 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var state = state.withLock { $0 }
        var tables: [UInt64] = [0, 0, 0]
        try coder.uint16("cur_entry", &state.key)
        try coder.uint32("cur_offset", &state.offset)
        try coder.subsections([
            Subsection("fw_cfg/dma", version: 0, isNeeded: true) { coder throws(StateError) in
                try coder.uint64("dma_addr", &state.dmaAddress)
            },
            // Sizes of ACPI tables that a sender's firmware was given; there are none here.
            Subsection("fw_cfg/acpi_mr", isNeeded: false) { coder throws(StateError) in
                try coder.uint64("table_mr_size", &tables[0])
                try coder.uint64("linker_mr_size", &tables[1])
                try coder.uint64("rsdp_mr_size", &tables[2])
            },
        ])
        if coder.isDecoding {
            let decoded = state
            self.state.withLock { $0 = decoded }
        }
    }
}
