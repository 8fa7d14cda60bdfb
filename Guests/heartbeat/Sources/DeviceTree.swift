import Bare

/// What the guest reads from the flattened device tree: RAM, harts, and the words on the kernel command line.
///
/// Source: Devicetree Specification 0.4, chapter 5. The tree comes from the monitor, yet a broken one only means defaults.
struct DeviceTree {
    private let address: UInt64
    private let byteCount: UInt64
    private(set) var ramByteCount: UInt64 = 0
    private(set) var hartCount = 0
    /// Address and length of the value of /chosen/bootargs.
    private var arguments: (address: UInt64, byteCount: UInt64) = (0, 0)

    init(at address: UInt64) {
        self.address = address
        guard address & 7 == 0, address >= Platform.ram, Self.bigEndian(address) == 0xd00d_feed else {
            byteCount = 0
            return
        }
        byteCount = Self.bigEndian(address &+ 4)
        walk(structure: address &+ Self.bigEndian(address &+ 8), strings: address &+ Self.bigEndian(address &+ 12))
    }

    private static func bigEndian(_ address: UInt64) -> UInt64 { UInt64(bare_load32(address).byteSwapped) }

    private mutating func walk(structure: UInt64, strings: UInt64) {
        enum Place { case other, memory, chosen }
        var position = structure
        var place = Place.other
        while position < address &+ byteCount {
            let token = Self.bigEndian(position)
            position &+= 4
            switch token {
            case 1:  // begin node: its name follows
                place = Self.starts(position, with: "memory@") ? .memory : Self.starts(position, with: "chosen") ? .chosen : .other
                if Self.starts(position, with: "cpu@") { hartCount &+= 1 }
                while bare_load8(position) != 0 { position &+= 1 }
                position = (position &+ 4) & ~3
            case 3:  // property: length, name, value
                let length = Self.bigEndian(position)
                let name = strings &+ Self.bigEndian(position &+ 4)
                position &+= 8
                if place == .memory, length == 16, Self.starts(name, with: "reg") {
                    ramByteCount = Self.bigEndian(position &+ 8) &<< 32 | Self.bigEndian(position &+ 12)
                } else if place == .chosen, Self.starts(name, with: "bootargs") {
                    arguments = (position, length)
                }
                position = (position &+ length &+ 3) & ~3
            case 9: return
            default: break  // end node, nothing
            }
        }
    }

    private static func starts(_ address: UInt64, with text: StaticString) -> Bool {
        for index in 0..<text.utf8CodeUnitCount where bare_load8(address &+ UInt64(index)) != text.utf8Start[index] { return false }
        return true
    }

    /// The number behind `name`, which ends in "=", on the command line.
    func argument(_ name: StaticString) -> UInt64? {
        let length = UInt64(name.utf8CodeUnitCount)
        var position = arguments.address
        let end = arguments.address &+ arguments.byteCount
        var atWordStart = true
        while position &+ length < end {
            if atWordStart, Self.starts(position, with: name) {
                position &+= length
                var value: UInt64 = 0
                while position < end {
                    let byte = bare_load8(position)
                    guard byte >= 48, byte <= 57 else { break }
                    value = value &* 10 &+ UInt64(byte &- 48)
                    position &+= 1
                }
                return value
            }
            atWordStart = bare_load8(position) == 32
            position &+= 1
        }
        return nil
    }

    /// Where RAM that may be written ends: below the tree itself, which a monitor puts near the end.
    var usableEnd: UInt64 {
        let end = Platform.ram &+ (ramByteCount == 0 ? 16 << 20 : ramByteCount)
        return byteCount != 0 && address > bare_image_end() && address < end ? address : end
    }
}
