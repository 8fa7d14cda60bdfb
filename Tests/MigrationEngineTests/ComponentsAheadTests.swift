import ComponentState
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

@Suite("State of components that goes ahead of the pause") struct ComponentsAheadTests {
    private struct Damaged: Error {}

    private static let refusal = StateError.invalid(component: "device", field: "bytes", value: "7")

    private func components(fill: UInt8) -> [ScriptedComponent] {
        (0..<6).map {
            ScriptedComponent(
                "device", instance: UInt32($0), byteCount: 40 + $0, fill: fill &+ UInt8($0), canGoAhead: $0 != 2)
        }
    }

    /// As it crosses.
    private func crossed(_ ahead: ComponentsAhead, as bytes: [UInt8]? = nil) throws -> ComponentsAhead {
        var reader = ByteReader(bytes ?? ahead.bytes) { _ in Damaged() }
        let result = try ComponentsAhead(from: &reader)
        try reader.finish()
        return result
    }

    private func standing(_ ahead: ComponentsAhead) throws -> [Int] {
        var reader = ByteReader(ahead.standingBytes) { _ in Damaged() }
        let result = try ComponentsAhead.standing(from: &reader)
        try reader.finish()
        return result
    }

    private func expectEqual(_ left: [ScriptedComponent], _ right: [ScriptedComponent]) {
        for (left, right) in zip(left, right) { #expect(left.bytes.withLock { $0 } == right.bytes.withLock { $0 }) }
    }

    @Test("what is still the same does not come again, what has changed does") func changes() throws {
        let source = components(fill: 7)
        let destination = components(fill: 0)
        var ahead = try ComponentsAhead(of: source)
        var reader = SavedComponents.Reader(destination)
        reader.take(try crossed(ahead))
        for place in [1, 4] { source[place].bytes.withLock { $0[3] ^= 1 } }
        var parts: [[UInt8]] = []
        let rest = try SavedComponents.encode(source, partByteCount: 1, ahead: &ahead) { parts.append($0) }
        #expect(parts.count == 3)
        #expect(try standing(ahead) == [0, 3, 5])
        for part in parts { try reader.decode(part: part) }
        try reader.stand(try standing(ahead))
        try reader.decode(rest)
        expectEqual(source, destination)
        #expect(destination.map { $0.decodeCount.load(ordering: .relaxed) } == [1, 2, 1, 1, 2, 1])
    }

    @Test("what a component refuses while the guest runs is loaded when it turns out to stand") func late() throws {
        let source = components(fill: 7)
        let destination = components(fill: 0)
        destination[3].fault.withLock { $0 = Self.refusal }
        var ahead = try ComponentsAhead(of: source)
        var reader = SavedComponents.Reader(destination)
        reader.take(try crossed(ahead))
        #expect(destination[3].decodeCount.load(ordering: .relaxed) == 0)
        let rest = try SavedComponents.encode(source, ahead: &ahead) { _ in }
        try reader.stand(try standing(ahead))
        try reader.decode(rest)
        expectEqual(source, destination)
    }

    @Test("what is refused then, what did not come, and what comes as well are refused") func refusals() throws {
        let source = components(fill: 7)
        func expectRefusal(
            _ code: MigrationError.Code, refusing place: Int? = nil, ahead bytes: [UInt8]? = nil,
            _ body: (inout SavedComponents.Reader) throws -> Void
        ) throws {
            let destination = components(fill: 0)
            var reader = SavedComponents.Reader(destination)
            let ahead = try crossed(try ComponentsAhead(of: source), as: bytes)
            if let place { destination[place].fault.withLock { $0 = Self.refusal } }
            reader.take(ahead)
            if let place { destination[place].fault.withLock { $0 = Self.refusal } }
            #expect { try body(&reader) } throws: { ($0 as? MigrationError)?.code == code }
        }
        try expectRefusal(.stateRejected, refusing: 3) { try $0.stand([0, 1, 3]) }
        try expectRefusal(.missingSection) { try $0.stand([0, 2]) }
        try expectRefusal(.missingSection) { try $0.stand([6]) }
        try expectRefusal(.doubledSection) { try $0.stand([0, 0]) }
        try expectRefusal(.doubledSection) { reader in
            try reader.stand([0, 1, 3, 4, 5])
            try reader.decode(try SavedComponents.encode(source))
        }
        var swapped = try ComponentsAhead(of: source).bytes
        swapped[4..<8] = [0, 0, 0, 2]
        try expectRefusal(.missingSection, ahead: swapped) { try $0.stand([2]) }
        try expectRefusal(.missingSection) { reader in
            var ahead = try ComponentsAhead(of: source)
            try reader.decode(try SavedComponents.encode(source, ahead: &ahead) { _ in })
        }
    }

    @Test("damaged bytes are refused at every length") func damaged() throws {
        let bytes = try ComponentsAhead(of: components(fill: 7)).bytes
        for count in 0..<bytes.count {
            #expect(throws: Damaged.self) {
                var reader = ByteReader(Array(bytes.prefix(count))) { _ in Damaged() }
                _ = try ComponentsAhead(from: &reader)
                try reader.finish()
            }
        }
    }
}
