import MigrationEngine
import MigrationTestKit
import Testing

@Suite("The state of components, in parts") struct SavedComponentsTests {
    private func components(fill: UInt8) -> [ScriptedComponent] {
        (0..<6).map { ScriptedComponent("device", instance: UInt32($0), byteCount: 300 + $0, fill: fill &+ UInt8($0)) }
    }

    private func parts(of components: [ScriptedComponent], byteCount: Int) throws -> [[UInt8]] {
        var parts: [[UInt8]] = []
        var nothing = ComponentsAhead()
        let rest = try SavedComponents.encode(components, partByteCount: byteCount, ahead: &nothing) {
            parts.append($0)
        }
        return parts + [rest]
    }

    @Test("in whatever parts, it arrives", arguments: [1, 400, 700, 5000, Int.max]) func arrives(byteCount: Int) throws
    {
        let source = components(fill: 7)
        let destination = components(fill: 0)
        let parts = try parts(of: source, byteCount: byteCount)
        #expect(parts.count == [1: 7, 400: 4, 700: 3][byteCount] ?? 1)
        var reader = SavedComponents.Reader(destination)
        for part in parts.dropLast() { try reader.decode(part: part) }
        try reader.decode(parts.last!)
        for (left, right) in zip(source, destination) {
            #expect(left.bytes.withLock { $0 } == right.bytes.withLock { $0 })
            #expect(right.decodeCount.load(ordering: .relaxed) == 1)
        }
    }

    @Test("a part that is missing, doubled, cut or holds the end is refused") func damaged() throws {
        let parts = try parts(of: components(fill: 7), byteCount: 1)
        func expectRefusal(_ code: MigrationError.Code, _ body: (inout SavedComponents.Reader) throws -> Void) {
            #expect {
                var reader = SavedComponents.Reader(components(fill: 0))
                try body(&reader)
            } throws: { error in
                (error as? MigrationError)?.code == code
            }
        }
        expectRefusal(.missingSection) { reader in
            for part in parts.dropLast().dropFirst() { try reader.decode(part: part) }
            try reader.decode(parts.last!)
        }
        expectRefusal(.doubledSection) { reader in
            try reader.decode(part: parts[0])
            try reader.decode(part: parts[0])
        }
        for count in 1..<parts[0].count {
            expectRefusal(.stateRejected) { reader in try reader.decode(part: Array(parts[0].prefix(count))) }
        }
        expectRefusal(.stateRejected) { reader in try reader.decode(part: parts.last!) }
    }
}
