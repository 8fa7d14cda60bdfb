/// What two streams say differently, for people.
package enum StreamDifference {
    /// Pages named one by one before they are only counted.
    static let namedPagesMax = 8

    /// One line each; empty when the streams leave a destination in the same state.
    ///
    /// Fields that only say when a stream was made differ like any other. Pages are compared when both reports have
    /// digests (``StreamAnalysis/Options/keepsPageDigests``).
    package static func lines(_ left: StreamReport, _ right: StreamReport) -> [String] {
        var lines: [String] = []
        func compare<Value: Equatable>(_ what: String, _ left: Value, _ right: Value) {
            if left != right { lines.append("\(what): \(left), \(right)") }
        }
        compare("machine", left.configuration?.machineName ?? "none", right.configuration?.machineName ?? "none")
        compare("capabilities", left.configuration?.capabilities ?? [], right.configuration?.capabilities ?? [])
        compare("complete", left.isComplete, right.isComplete)
        lines += blockLines(left, right)
        lines += sectionLines(left, right)
        return lines
    }

    private static func blockLines(_ left: StreamReport, _ right: StreamReport) -> [String] {
        var lines: [String] = []
        if left.blocks.map(\.name) != right.blocks.map(\.name),
            Set(left.blocks.map(\.name)) == Set(right.blocks.map(\.name))
        {
            lines.append("RAM blocks come in another order")
        }
        for (index, block) in left.blocks.enumerated() {
            guard let other = right.blocks.firstIndex(where: { $0.name == block.name }) else {
                lines.append("RAM block \(block.name): only in the first")
                continue
            }
            if block.byteCount != right.blocks[other].byteCount {
                lines.append("RAM block \(block.name): \(block.byteCount), \(right.blocks[other].byteCount) bytes")
            }
            guard index < left.pageDigests.count, other < right.pageDigests.count else { continue }
            lines += pageLines(block.name, left.pageDigests[index].digests, right.pageDigests[other].digests)
        }
        for block in right.blocks where !left.blocks.contains(where: { $0.name == block.name }) {
            lines.append("RAM block \(block.name): only in the second")
        }
        return lines
    }

    private static func pageLines(_ name: String, _ left: [UInt64], _ right: [UInt64]) -> [String] {
        var different: [Int] = []
        var count = 0
        var unknown = 0
        for page in 0..<min(left.count, right.count) {
            if left[page] == 1 || right[page] == 1 {
                unknown += 1
            } else if left[page] != right[page] {
                count += 1
                if different.count < namedPagesMax { different.append(page) }
            }
        }
        var lines: [String] = []
        if count > 0 {
            let named = different.map { "0x" + String($0 * 4096, radix: 16) }.joined(separator: " ")
            lines.append("RAM block \(name): \(count) pages differ: \(named)\(count > different.count ? " ..." : "")")
        }
        if unknown > 0 { lines.append("RAM block \(name): \(unknown) pages cannot be compared") }
        return lines
    }

    /// What stands at the same place of both: the n-th of a key with the n-th of it.
    private static func pairs<Element, Key: Hashable>(
        _ left: [Element], _ right: [Element], by key: (Element) -> Key
    ) -> (both: [(Element, Element)], onlyLeft: [Element], onlyRight: [Element]) {
        var waiting: [Key: [Int]] = [:]
        for (index, element) in right.enumerated().reversed() { waiting[key(element), default: []].append(index) }
        var both: [(Element, Element)] = []
        var onlyLeft: [Element] = []
        var taken: Set<Int> = []
        for element in left {
            if let index = waiting[key(element)]?.popLast() {
                both.append((element, right[index]))
                taken.insert(index)
            } else {
                onlyLeft.append(element)
            }
        }
        return (both, onlyLeft, right.indices.filter { !taken.contains($0) }.map { right[$0] })
    }

    private static func sectionLines(_ left: StreamReport, _ right: StreamReport) -> [String] {
        var lines: [String] = []
        let (both, onlyLeft, onlyRight) = pairs(left.sections, right.sections) { sectionName($0) }
        for (section, other) in both {
            let name = sectionName(section)
            if section.header.version != other.header.version {
                lines.append("\(name): version \(section.header.version), \(other.header.version)")
            }
            if let content = section.content, let otherContent = other.content {
                structureLines(name, content, otherContent, into: &lines)
            } else if section.byteCount != other.byteCount {
                lines.append("\(name): \(section.byteCount), \(other.byteCount) bytes")
            } else if section.body != other.body {
                lines.append("\(name): contents differ, fields unknown")
            }
        }
        lines += onlyLeft.map { "\(sectionName($0)): only in the first" }
        lines += onlyRight.map { "\(sectionName($0)): only in the second" }
        return lines
    }

    static func sectionName(_ section: StreamReport.Section) -> String {
        section.header.instance == 0 ? section.header.name : "\(section.header.name)[\(section.header.instance)]"
    }

    /// What two versions of one structure have differently; `path` stands before the names of fields.
    package static func lines(_ path: String, _ left: DissectedStructure, _ right: DissectedStructure) -> [String] {
        var lines: [String] = []
        structureLines(path, left, right, into: &lines)
        return lines
    }

    private static func structureLines(
        _ path: String, _ left: DissectedStructure, _ right: DissectedStructure, into lines: inout [String]
    ) {
        let fields = pairs(left.fields, right.fields) { $0.fullName }
        for (field, other) in fields.both {
            valueLines("\(path).\(field.fullName)", field.value, other.value, into: &lines)
        }
        lines += fields.onlyLeft.map { "\(path).\($0.fullName): only in the first" }
        lines += fields.onlyRight.map { "\(path).\($0.fullName): only in the second" }
        let subsections = pairs(left.subsections, right.subsections) { $0.name }
        for (subsection, other) in subsections.both {
            structureLines("\(path) \(subsection.name)", subsection, other, into: &lines)
        }
        lines += subsections.onlyLeft.map { "\(path) \($0.name): only in the first" }
        lines += subsections.onlyRight.map { "\(path) \($0.name): only in the second" }
    }

    private static func valueLines(
        _ path: String, _ left: DissectedField.Value, _ right: DissectedField.Value, into lines: inout [String]
    ) {
        if left == right { return }
        switch (left, right) {
        case (.structure(let left), .structure(let right)): structureLines(path, left, right, into: &lines)
        case (.structures(let left), .structures(let right)) where left.count == right.count:
            for index in left.indices { structureLines("\(path)[\(index)]", left[index], right[index], into: &lines) }
        case (.integers(let left), .integers(let right)) where left.count == right.count:
            for index in left.indices where left[index] != right[index] {
                lines.append("\(path)[\(index)]: \(hexadecimal(left[index])), \(hexadecimal(right[index]))")
            }
        case (.bytes(let left), .bytes(let right)) where left.count == right.count:
            let places = left.indices.filter { left[$0] != right[$0] }
            lines.append("\(path): \(places.count) of \(left.count) bytes differ, from \(places[0]) on")
        // Fields that only changed their width mean the same.
        case (.unsigned(let left), .boolean(let right)) where left == (right ? 1 : 0): break
        case (.boolean(let left), .unsigned(let right)) where right == (left ? 1 : 0): break
        default: lines.append("\(path): \(left.text), \(right.text)")
        }
    }
}

extension DissectedField {
    /// With the number of the element, when elements are described one by one.
    package var fullName: String { index.map { "\(name)[\($0)]" } ?? name }
}

extension DissectedField.Value {
    /// As people read it; long values are cut.
    package var text: String {
        switch self {
        case .unsigned(let value): value < 10 ? String(value) : hexadecimal(value)
        case .signed(let value): String(value)
        case .boolean(let value): String(value)
        case .timer(let expiry): expiry.map { "\($0) ns" } ?? "not armed"
        case .integers(let values):
            if values.allSatisfy({ $0 == 0 }) {
                "\(values.count) x 0"
            } else {
                values.prefix(16).map(hexadecimal).joined(separator: " ")
                    + (values.count > 16 ? " ... of \(values.count)" : "")
            }
        case .bytes(let bytes): Self.text(of: bytes)
        case .structure(let structure): structure.name
        case .structures(let structures): "\(structures.count) x \(structures.first?.name ?? "")"
        }
    }

    private static func text(of bytes: [UInt8]) -> String {
        if bytes.allSatisfy({ $0 == 0 }) { return "\(bytes.count) zero bytes" }
        let visible = bytes.prefix { $0 >= 0x20 && $0 < 0x7f }
        if visible.count >= 4, bytes.dropFirst(visible.count).allSatisfy({ $0 == 0 }) {
            return "\"\(String(decoding: visible, as: UTF8.self))\""
        }
        let shown = bytes.prefix(24).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        return bytes.count > 24 ? "\(shown)... of \(bytes.count) bytes" : shown
    }
}
