/// Machine code under construction, with labels.
struct LabelAssembler {
    private enum Fixup { case branch, jump }

    private(set) var words: [UInt32] = []
    private var labels: [String: Int] = [:]
    private var fixups: [(index: Int, kind: Fixup, label: String)] = []

    mutating func emit(_ instructions: UInt32...) { words += instructions }
    mutating func emit(_ instructions: [UInt32]) { words += instructions }
    mutating func label(_ name: String) {
        precondition(labels.updateValue(words.count, forKey: name) == nil, "label \(name) twice")
    }

    /// A conditional branch; `funct3` as in the encoding.
    mutating func branch(_ funct3: UInt32, _ rs1: Int, _ rs2: Int, to label: String) {
        fixups.append((words.count, .branch, label))
        words.append(Encode.b(funct3, rs1, rs2, 0))
    }
    mutating func beq(_ a: Int, _ b: Int, _ label: String) { branch(0, a, b, to: label) }
    mutating func bne(_ a: Int, _ b: Int, _ label: String) { branch(1, a, b, to: label) }
    mutating func blt(_ a: Int, _ b: Int, _ label: String) { branch(4, a, b, to: label) }
    mutating func bltu(_ a: Int, _ b: Int, _ label: String) { branch(6, a, b, to: label) }
    mutating func bgeu(_ a: Int, _ b: Int, _ label: String) { branch(7, a, b, to: label) }
    mutating func jump(_ label: String) {
        fixups.append((words.count, .jump, label))
        words.append(Encode.jal(0, 0))
    }

    /// Byte offset of a label.
    func offset(of label: String) -> Int { labels[label]! * 4 }

    /// The code with its branches resolved.
    func finished() -> [UInt32] {
        var result = words
        for (index, kind, label) in fixups {
            let distance = (labels[label]! - index) * 4
            switch kind {
            case .branch:
                precondition(abs(distance) < 4096, "\(label) is too far for a branch")
                result[index] |= Encode.b(0, 0, 0, distance) & ~0x7f
            case .jump: result[index] = Encode.jal(0, distance)
            }
        }
        return result
    }
}
