package import ComponentState
package import DeviceModel
package import GuestMemory
import Synchronization

/// A bank of NOR flash with the Common Flash Interface and command set 01: two 16-bit chips side by side on a 32-bit bus,
/// so every command and every status is seen twice, once in each half of a word.
///
/// The contents are a RAM block, which migrates as such; they are served from here in every mode and are not in the
/// guest-physical map, so code cannot be executed in place.
///
/// Source: JEDEC JESD68.01 (CFI), JEP137 (command set 0001), Intel StrataFlash P30 datasheet.
package final class CFIFlash: BusDevice, StatefulComponent {
    /// Bytes per erase block, both chips together.
    package static let eraseBlockByteCount = 256 << 10

    private enum Command {
        static let programAlternate: UInt8 = 0x10
        static let erase: UInt8 = 0x20
        static let program: UInt8 = 0x40
        static let clearStatus: UInt8 = 0x50
        static let lock: UInt8 = 0x60
        static let readStatus: UInt8 = 0x70
        static let readIdentifier: UInt8 = 0x90
        static let query: UInt8 = 0x98
        static let confirm: UInt8 = 0xd0
        static let programBuffer: UInt8 = 0xe8
        static let readArray: UInt8 = 0xff
    }

    private enum Status {
        static let ready: UInt8 = 0x80
        static let programError: UInt8 = 0x10
        static let eraseError: UInt8 = 0x20
    }

    /// Words one buffered program may carry: 2^11 bytes by the query table, in 16-bit words of one chip.
    private static let bufferWordCountMax: UInt64 = 1024

    package let name: String
    package let sectionName = "pflash_cfi01"
    package let instance: UInt32
    package let readableVersions: ClosedRange<UInt32> = 1...1
    private let block: RAMBlock
    private let queryTable: [UInt8]

    private struct State {
        /// Which write of a multi-write command comes next; 0 expects a command.
        var writeCycle: UInt8 = 0
        /// The command in progress; 0 is read array.
        var command: UInt8 = 0
        var status = Status.ready
        /// Words still to come in a buffered program.
        var counter: UInt64 = 0
    }

    private let state = Mutex(State())

    /// - Parameters:
    ///   - block: The contents; a multiple of ``eraseBlockByteCount``, a power of two.
    ///   - instance: 0 for the first bank.
    package init(block: RAMBlock, instance: UInt32) {
        precondition(block.byteCount >= Self.eraseBlockByteCount && block.byteCount.nonzeroBitCount == 1)
        self.block = block
        self.instance = instance
        name = block.name
        queryTable = Self.makeQueryTable(byteCount: block.byteCount)
    }

    /// The query table of one chip, from word address 0 (JESD68.01, table 1 to 4).
    private static func makeQueryTable(byteCount: Int) -> [UInt8] {
        var table = [UInt8](repeating: 0, count: 0x40)
        let chipByteCount = byteCount / 2
        let blockCount = byteCount / eraseBlockByteCount
        let chipBlockUnits = eraseBlockByteCount / 2 / 256
        table.replaceSubrange(0x10...0x12, with: Array("QRY".utf8))
        table[0x13] = 0x01  // Command set 0x0001.
        table[0x15] = 0x31  // Address of the extended table.
        table[0x1b] = 0x45  // Supply between 4.5
        table[0x1c] = 0x55  // and 5.5 V.
        table[0x1f] = 0x07  // Typical times: 2^7 us for a word,
        table[0x20] = 0x07  // 2^7 us for a buffer,
        table[0x21] = 0x0a  // 2^10 ms for a block.
        table[0x23] = 0x04  // Longest times: 2^4 of the typical ones.
        table[0x24] = 0x04
        table[0x25] = 0x04
        table[0x27] = UInt8(chipByteCount.trailingZeroBitCount)
        table[0x28] = 0x02  // x8 and x16.
        table[0x2a] = 0x0b  // 2^11 bytes in a write buffer.
        table[0x2c] = 0x01  // One region of equal blocks:
        table[0x2d] = UInt8(truncatingIfNeeded: blockCount - 1)
        table[0x2e] = UInt8(truncatingIfNeeded: (blockCount - 1) >> 8)
        table[0x2f] = UInt8(truncatingIfNeeded: chipBlockUnits)
        table[0x30] = UInt8(truncatingIfNeeded: chipBlockUnits >> 8)
        table.replaceSubrange(0x31...0x35, with: Array("PRI10".utf8))
        return table
    }

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        guard offset <= UInt64(block.byteCount - width.rawValue) else { return 0 }
        let mode = state.withLock { ($0.command, $0.status) }
        switch mode.0 {
        case Command.readIdentifier: return lanes(identifier(word: offset / 4 & 0xff), offset: offset, width: width)
        case Command.query:
            let word = Int(offset / 4 & 0xff)
            return lanes(word < queryTable.count ? queryTable[word] : 0, offset: offset, width: width)
        case 0: return array(at: Int(offset), width: width)
        default: return lanes(mode.1, offset: offset, width: width)
        }
    }

    /// Identifier words: manufacturer, device, then lock state and the rest, which read as zero.
    private func identifier(word: UInt64) -> UInt8 {
        switch word {
        case 0: 0x89
        case 1: 0x18
        default: 0
        }
    }

    /// What one chip puts on its data lines, as the whole bus shows it: in the low byte of each 16-bit half.
    private func lanes(_ value: UInt8, offset: UInt64, width: AccessWidth) -> UInt64 {
        let all = UInt64(value) &* 0x0001_0001_0001_0001
        return (all >> (offset % 2 * 8)) & mask(width)
    }

    private func mask(_ width: AccessWidth) -> UInt64 { width == .eight ? .max : (1 << UInt64(width.rawValue * 8)) - 1 }

    private func array(at offset: Int, width: AccessWidth) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<width.rawValue {
            value |= UInt64(unsafe block.base.load(fromByteOffset: offset + index, as: UInt8.self)) << UInt64(index * 8)
        }
        return value
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard offset <= UInt64(block.byteCount - width.rawValue) else { return }
        if width == .eight {  // The bus is 32 bits wide.
            store(offset: offset, width: .four, value: value & 0xffff_ffff)
            store(offset: offset + 4, width: .four, value: value >> 32)
            return
        }
        let command = UInt8(truncatingIfNeeded: value)
        state.withLock { state in
            switch state.writeCycle {
            case 0: begin(command, offset: Int(offset), &state)
            case 1: advance(command, offset: Int(offset), width: width, value: value, &state)
            case 2:  // Data of a buffered program.
                program(offset: Int(offset), width: width, value: value)
                state.status |= Status.ready
                if state.counter == 0 { state.writeCycle = 3 } else { state.counter -= 1 }
            default:  // The confirmation of a buffered program.
                if command != Command.confirm { state.status |= Status.programError | Status.eraseError }
                state.status |= Status.ready
                state.writeCycle = 0
                if command == Command.readArray { state.command = 0 }
            }
        }
    }

    private func begin(_ command: UInt8, offset: Int, _ state: inout State) {
        switch command {
        case Command.programAlternate, Command.program, Command.erase, Command.lock:
            state.command = command
            state.writeCycle = 1
        case Command.programBuffer:
            state.status |= Status.ready
            state.command = command
            state.writeCycle = 1
        case Command.clearStatus:
            state.status = Status.ready
            state.command = 0
        case Command.readStatus, Command.readIdentifier, Command.query: state.command = command
        default: state.command = 0  // Read array, and whatever the chip does not know.
        }
    }

    private func advance(_ command: UInt8, offset: Int, width: AccessWidth, value: UInt64, _ state: inout State) {
        switch state.command {
        case Command.programAlternate, Command.program:
            program(offset: offset, width: width, value: value)
            state.status |= Status.ready
            state.writeCycle = 0
        case Command.erase where command == Command.confirm:
            eraseBlock(at: offset)
            state.status |= Status.ready
            state.writeCycle = 0
        case Command.lock where command == Command.confirm || command == 0x01:
            state.status |= Status.ready  // Blocks are never locked.
            state.writeCycle = 0
        case Command.programBuffer:
            state.counter = min(value & 0xffff, Self.bufferWordCountMax - 1)
            state.writeCycle = 2
        default:
            if command != Command.readArray { state.status |= Status.programError | Status.eraseError }
            state.command = command == Command.readArray ? 0 : Command.readStatus
            state.writeCycle = 0
        }
    }

    /// Programming clears bits; only erasing sets them.
    private func program(offset: Int, width: AccessWidth, value: UInt64) {
        for index in 0..<width.rawValue {
            let old = unsafe block.base.load(fromByteOffset: offset + index, as: UInt8.self)
            let new = old & UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
            unsafe block.base.storeBytes(of: new, toByteOffset: offset + index, as: UInt8.self)
        }
        block.dirty.mark(offset: offset, byteCount: width.rawValue)
    }

    private func eraseBlock(at offset: Int) {
        let start = offset / Self.eraseBlockByteCount * Self.eraseBlockByteCount
        unsafe (block.base + start).initializeMemory(as: UInt8.self, repeating: 0xff, count: Self.eraseBlockByteCount)
        block.dirty.mark(offset: start, byteCount: Self.eraseBlockByteCount)
    }

    // MARK: Life cycle

    /// Back to read array. The contents stay, as in a real chip.
    package func reset() { state.withLock { $0 = State() } }

    // MARK: State

    package var canGoAhead: Bool { true }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var state = state.withLock { $0 }
        try coder.uint8("wcycle", &state.writeCycle)
        try coder.uint8("cmd", &state.command)
        try coder.uint8("status", &state.status)
        try coder.uint64("counter", &state.counter)
        guard coder.isDecoding else { return }
        guard state.writeCycle <= 3 else {
            throw .invalid(component: coder.component, field: "wcycle", value: "\(state.writeCycle)")
        }
        guard state.counter <= 0xffff else {
            throw .invalid(component: coder.component, field: "counter", value: "\(state.counter)")
        }
        if state.command == Command.readArray { state.command = 0 }
        self.state.withLock { $0 = state }
    }
}
