/// Why an ISA string was refused.
package enum RISCVConfigurationError: Error, Hashable, Sendable, CustomStringConvertible {
    /// Does not begin with `rv64i` or `rv64g`, or has a character that no ISA string has.
    case malformed(String)
    /// An extension that this processor does not have.
    case unknownExtension(String)
    /// One extension needs another that is not there.
    case missing(String, neededBy: String)

    package var description: String {
        switch self {
        case .malformed(let text): "'\(text)' is not an ISA string of a 64-bit RISC-V processor"
        case .unknownExtension(let name): "extension '\(name)' is not available"
        case .missing(let name, let user): "extension '\(user)' needs '\(name)'"
        }
    }
}

/// The extensions that can be switched; the privileged architecture (M, S, U, PMP) is always there.
struct ISAExtensions: OptionSet, Hashable, Sendable {
    let rawValue: UInt32

    static let m = ISAExtensions(rawValue: 1 << 0)
    static let a = ISAExtensions(rawValue: 1 << 1)
    static let f = ISAExtensions(rawValue: 1 << 2)
    static let d = ISAExtensions(rawValue: 1 << 3)
    static let c = ISAExtensions(rawValue: 1 << 4)
    static let zicbom = ISAExtensions(rawValue: 1 << 5)
    static let zicbop = ISAExtensions(rawValue: 1 << 6)
    static let zicboz = ISAExtensions(rawValue: 1 << 7)
    static let zicntr = ISAExtensions(rawValue: 1 << 8)
    static let zicsr = ISAExtensions(rawValue: 1 << 9)
    static let zifencei = ISAExtensions(rawValue: 1 << 10)
    static let zihintpause = ISAExtensions(rawValue: 1 << 11)
    static let zihpm = ISAExtensions(rawValue: 1 << 12)
    static let zba = ISAExtensions(rawValue: 1 << 13)
    static let zbb = ISAExtensions(rawValue: 1 << 14)
    static let zbc = ISAExtensions(rawValue: 1 << 15)
    static let zbs = ISAExtensions(rawValue: 1 << 16)
    static let sstc = ISAExtensions(rawValue: 1 << 17)
    static let svadu = ISAExtensions(rawValue: 1 << 18)
    static let zawrs = ISAExtensions(rawValue: 1 << 19)
    static let zfa = ISAExtensions(rawValue: 1 << 20)

    /// In the canonical order of ISA strings.
    static let names: [(name: String, value: ISAExtensions)] = [
        ("m", .m), ("a", .a), ("f", .f), ("d", .d), ("c", .c),
        ("zicbom", .zicbom), ("zicbop", .zicbop), ("zicboz", .zicboz), ("zicntr", .zicntr), ("zicsr", .zicsr),
        ("zifencei", .zifencei), ("zihintpause", .zihintpause), ("zihpm", .zihpm),
        ("zawrs", .zawrs), ("zfa", .zfa),
        ("zba", .zba), ("zbb", .zbb), ("zbc", .zbc), ("zbs", .zbs), ("sstc", .sstc), ("svadu", .svadu),
    ]
}

/// What a hart implements: the extensions of an ISA string and the widest address translation.
///
/// What is not named here is not there: its instructions are illegal and its registers absent.
package struct RISCVConfiguration: Sendable, Hashable {
    /// Widest supported address translation; the narrower ones come with it.
    package enum AddressTranslation: String, Sendable, CaseIterable {
        case none = "none"
        case sv39 = "sv39"
        case sv48 = "sv48"
        case sv57 = "sv57"

        /// The largest `satp.MODE`.
        var largestMode: UInt64 {
            switch self {
            case .none: 0
            case .sv39: 8
            case .sv48: 9
            case .sv57: 10
            }
        }
    }

    let extensions: ISAExtensions
    package let translation: AddressTranslation

    /// All there is.
    package static let standard: RISCVConfiguration = {
        RISCVConfiguration(extensions: ISAExtensions(rawValue: (1 << 21) - 1).subtracting(.zihpm), translation: .sv57)
    }()

    private init(extensions: ISAExtensions, translation: AddressTranslation) {
        self.extensions = extensions
        self.translation = translation
    }

    /// Takes an ISA string such as `rv64imafdc_zicsr_zifencei_sstc`.
    ///
    /// `g` stands for `imafd_zicsr_zifencei` and `b` for `zba_zbb_zbs`; `sv39`, `sv48` or `sv57` limits address
    /// translation. Case does not matter. Zicsr and Zifencei are always there: the privileged architecture needs them.
    package init(isa: String) throws(RISCVConfigurationError) {
        let text = isa.lowercased()
        guard text.hasPrefix("rv64"), text.utf8.count <= 1024,
            text.utf8.allSatisfy({ ($0 >= 0x61 && $0 <= 0x7a) || ($0 >= 0x30 && $0 <= 0x39) || $0 == 0x5f })
        else { throw .malformed(isa) }
        var extensions: ISAExtensions = [.zicsr, .zifencei]
        var translation: AddressTranslation?
        let parts = text.dropFirst(4).split(separator: "_", omittingEmptySubsequences: true)
        guard let letters = parts.first, let base = letters.first, base == "i" || base == "g" else {
            throw .malformed(isa)
        }
        if base == "g" { extensions.formUnion([.m, .a, .f, .d]) }
        var names = letters.dropFirst().map(String.init)
        names += parts.dropFirst().map(String.init)
        for name in names {
            if let known = ISAExtensions.names.first(where: { $0.name == name }) {
                extensions.insert(known.value)
            } else if let mode = AddressTranslation(rawValue: name), mode != .none {
                if mode.largestMode > (translation ?? .none).largestMode { translation = mode }
            } else if name == "b" {
                extensions.formUnion([.zba, .zbb, .zbs])
            } else if name != "s" && name != "u" {
                throw .unknownExtension(name)
            }
        }
        if extensions.contains(.d) && !extensions.contains(.f) { throw .missing("f", neededBy: "d") }
        self.init(extensions: extensions, translation: translation ?? .sv57)
    }

    private var names: [String] {
        ISAExtensions.names.filter { extensions.contains($0.value) }.map(\.name)
    }

    /// For the device tree's `riscv,isa`.
    package var isaString: String {
        let letters = names.filter { $0.utf8.count == 1 }.joined()
        return (["rv64i" + letters] + names.filter { $0.utf8.count > 1 }).joined(separator: "_")
    }

    /// For the device tree's `riscv,isa-base`.
    package var isaBase: String { "rv64i" }

    /// For the device tree's `riscv,isa-extensions`.
    package var isaExtensions: [String] { ["i"] + names }

    /// For the device tree's `mmu-type`.
    package var mmuType: String { "riscv,\(translation.rawValue)" }

    /// Bytes that one `cbo` instruction works on, for the device tree; nil without such instructions.
    package var cboBlockByteCount: UInt32? {
        extensions.isDisjoint(with: [.zicbom, .zicbop, .zicboz]) ? nil : 64
    }

    /// Whether `riscv,cbom-block-size` belongs into the device tree.
    package var hasZicbom: Bool { extensions.contains(.zicbom) }
    /// Whether `riscv,cbop-block-size` belongs into the device tree.
    package var hasZicbop: Bool { extensions.contains(.zicbop) }
    /// Whether `riscv,cboz-block-size` belongs into the device tree.
    package var hasZicboz: Bool { extensions.contains(.zicboz) }

    /// The letters of `misa`.
    var misaExtensions: UInt64 {
        var letters: UInt64 = 1 << 8 | 1 << 18 | 1 << 20
        if extensions.contains(.m) { letters |= 1 << 12 }
        if extensions.contains(.a) { letters |= 1 << 0 }
        if extensions.contains(.f) { letters |= 1 << 5 }
        if extensions.contains(.d) { letters |= 1 << 3 }
        if extensions.contains(.c) { letters |= 1 << 2 }
        return letters
    }
}
