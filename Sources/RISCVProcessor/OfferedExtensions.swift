package import ComponentState

/// What a guest may have been offered by the machine it booted on, and what other processors make of it.
///
/// A guest builds on what its device tree says: the kernel patches itself for it. It can only run where all of that works.
extension RISCVConfiguration {
    /// Names that add neither instructions nor registers to those of the other names, or only promise how something that
    /// is there behaves; all of it holds here. `h`, the hypervisor extension, and `sdtrig`, debug triggers, are among
    /// them because a state that uses them is refused.
    ///
    /// Source: RISC-V Profiles, version 1.0; "RVA23 Profiles", version 1.0.
    private static let promises: Set<String> = [
        "i", "s", "u", "h", "b", "zic64b", "ziccamoa", "ziccif", "zicclsm", "ziccrse", "zihintntl", "zmmul", "za64rs",
        "za128rs", "zaamo", "zalrsc", "zca", "zcd", "shcounterenw", "shgatpa", "shtvala", "shvsatpa", "shvstvala",
        "shvstvecd", "sha", "ssccptr", "sscounterenw", "sstvala", "sstvecd", "ssu64xl", "svade", "svvptc", "svbare",
        "svpbmt", "sdtrig", "ssstrict", "sv39", "sv48", "sv57", "zicntr", "zihpm",
    ]

    /// Beyond ``promises``, what some processor of QEMU 7.2's `virt` can be given.
    private static let knownTo7: Set<String> = [
        "m", "a", "f", "d", "c", "v", "zicsr", "zifencei", "zihintpause", "zba", "zbb", "zbc", "zbs", "zbkb", "zbkc",
        "zbkx", "zfh", "zfhmin", "zknd", "zkne", "zknh", "zkr", "zksed", "zksh", "zkt", "sstc", "svinval", "svnapot",
        "zve32f", "zve64f", "smaia", "ssaia", "sscofpmf", "smstateen",
    ]

    /// The processor of `sidestep run --compat`: what both this one and the default `rv64` of that release have.
    package static func isa(compatibleWith layout: StateLayout) -> String? {
        switch layout {
        case .qemu7_2: "rv64imafdc_zicsr_zifencei_zihintpause_zicntr_zba_zbb_zbc_zbs_sstc"
        case .native, .qemu10_0, .qemu11_1: nil
        }
    }

    /// Extensions of those offered that the processors of a release do not have; for the native layout, this one.
    package static func lacking(_ offered: [String], in layout: StateLayout) -> [String] {
        let known: Set<String>
        switch layout {
        case .native: known = Set(ISAExtensions.names.map(\.name))
        case .qemu7_2: known = knownTo7
        // Their default processors have all that this one has, and what else a guest was offered came from them.
        case .qemu10_0, .qemu11_1: return []
        }
        return offered.filter { !known.contains($0) && !promises.contains($0) }.sorted()
    }

    /// All there is, with the event counters that QEMU's processors have and that count nothing here.
    package static let isaForArrivals = standard.isaString + "_zihpm"

    /// The extensions of a `riscv,isa` string, one name each.
    package static func extensionNames(ofISA text: String) -> [String] {
        var parts = text.lowercased().split(separator: "_").map(String.init)
        guard let first = parts.first, first.hasPrefix("rv64") else { return [] }
        parts.removeFirst()
        // Letters, up to a name of several that follows without a separator.
        var letters: [String] = []
        var rest = first.dropFirst(4)
        while let letter = rest.first, !(["s", "z", "x"].contains(letter) && rest.count > 1 && letter != "s") {
            letters.append(letter == "g" ? "imafd" : String(letter))
            rest.removeFirst()
        }
        if !rest.isEmpty { parts.insert(String(rest), at: 0) }
        return letters.flatMap { $0.map { String($0) } } + parts
    }
}
