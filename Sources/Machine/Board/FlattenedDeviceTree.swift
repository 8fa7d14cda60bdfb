/// A device tree under construction, and its flattened form.
///
/// Source: Devicetree Specification 0.4, chapter 5.
struct DeviceTreeNode {
    let name: String
    private var properties: [(name: String, value: [UInt8])] = []
    private var children: [DeviceTreeNode] = []

    /// - Parameter name: With the unit address, `serial@10000000`; empty for the root.
    init(_ name: String) { self.name = name }

    mutating func set(_ property: String) { properties.append((property, [])) }

    mutating func set(_ property: String, _ text: String) { properties.append((property, Array(text.utf8) + [0])) }

    /// A list of strings.
    mutating func set(_ property: String, _ list: [String]) {
        properties.append((property, list.flatMap { Array($0.utf8) + [0] }))
    }

    /// Big-endian 32-bit cells.
    mutating func set(_ property: String, cells: UInt32...) {
        properties.append((property, cells.flatMap(Self.bigEndian)))
    }

    mutating func set(_ property: String, cellList cells: [UInt32]) {
        properties.append((property, cells.flatMap(Self.bigEndian)))
    }

    /// Pairs of a 64-bit address and a 64-bit length, for parents with two cells of each.
    mutating func set(_ property: String, regions: (address: UInt64, byteCount: UInt64)...) {
        set(
            property,
            cellList: regions.flatMap { region in
                [region.address, region.byteCount].flatMap { [UInt32($0 >> 32), UInt32(truncatingIfNeeded: $0)] }
            })
    }

    mutating func set(_ property: String, bytes: [UInt8]) { properties.append((property, bytes)) }

    mutating func add(_ child: DeviceTreeNode) { children.append(child) }

    private static func bigEndian(_ value: UInt32) -> [UInt8] {
        [
            UInt8(truncatingIfNeeded: value >> 24), UInt8(truncatingIfNeeded: value >> 16),
            UInt8(truncatingIfNeeded: value >> 8),
            UInt8(truncatingIfNeeded: value),
        ]
    }

    // MARK: Flattening

    private enum Token {
        static let beginNode: UInt32 = 1, endNode: UInt32 = 2, property: UInt32 = 3, end: UInt32 = 9
    }

    /// The tree under this root as a version 17 blob, without memory reservations.
    func flattened() -> [UInt8] {
        var structure: [UInt8] = []
        var strings: [UInt8] = []
        var stringOffsets: [String: UInt32] = [:]
        func pad(_ bytes: inout [UInt8]) { while bytes.count % 4 != 0 { bytes.append(0) } }
        func emit(_ node: DeviceTreeNode) {
            structure += Self.bigEndian(Token.beginNode) + Array(node.name.utf8) + [0]
            pad(&structure)
            for property in node.properties {
                let offset: UInt32
                if let known = stringOffsets[property.name] {
                    offset = known
                } else {
                    offset = UInt32(strings.count)
                    stringOffsets[property.name] = offset
                    strings += Array(property.name.utf8) + [0]
                }
                structure += Self.bigEndian(Token.property) + Self.bigEndian(UInt32(property.value.count))
                structure += Self.bigEndian(offset) + property.value
                pad(&structure)
            }
            for child in node.children { emit(child) }
            structure += Self.bigEndian(Token.endNode)
        }
        emit(self)
        structure += Self.bigEndian(Token.end)

        let headerByteCount = 40
        let reservationByteCount = 16  // The list's end alone.
        let structureOffset = headerByteCount + reservationByteCount
        let stringsOffset = structureOffset + structure.count
        let header: [UInt32] = [
            0xd00d_feed, UInt32(stringsOffset + strings.count), UInt32(structureOffset), UInt32(stringsOffset),
            UInt32(headerByteCount), 17, 16, 0, UInt32(strings.count), UInt32(structure.count),
        ]
        return header.flatMap(Self.bigEndian) + Array(repeating: 0, count: reservationByteCount) + structure + strings
    }
}
