package import LinuxCalls
import MigrationChannels
package import MigrationEngine
package import MigrationStream

/// Has the timers of riscv harts fire at once where a guest arrives, if they would not fire at all.
///
/// QEMU before 10.2 sends when a timer is due and does not set it again at the destination; such a guest, idle or busy, has no clock
/// until another interrupt has it set the next one. Sent as pending, the interrupt is taken at once, and the guest sets the next.
/// Nothing else is touched; where a field stands is read from the stream's own description, so any release will do.
package struct TimerMender: StreamRelay.Rewriter {
    package init() {}

    package var passesSwitchoverStart: Bool { true }
    package var hints: [String] { [] }
    package func drops(block name: String) -> Bool { false }
    package func look(at page: UnsafeRawBufferPointer, block: String, offset: UInt64) {}

    /// Pending bits of `mip`. Source: The RISC-V Instruction Set Manual, volume II, section 3.1.9.
    private static let supervisorTimer: UInt64 = 1 << 5
    private static let machineTimer: UInt64 = 1 << 7
    /// What QEMU calls `CPU_INTERRUPT_HARD`: the hart is to look at `mip`.
    private static let hardInterrupt: UInt64 = 2
    /// From this version on the section `riscv_mtimer` has timers.
    private static let machineTimersVersion: UInt32 = 3

    package mutating func rewrite(_ sections: [UnreadSection], _ description: inout VMDescription?) throws
        -> [UnreadSection]
    {
        guard sections.contains(where: { $0.header.name == "cpu" }) else { return sections }
        guard let description else {
            throw Refusal(
                "the old QEMU sends no description of its state, in which a riscv guest's timers are found; start guests "
                    + "without suppress-vmdesc=on")
        }
        var result = sections
        let machineTimers = try deadlines(sections, description)
        let harts = result.indices.filter { result[$0].header.name == "cpu" }
            .sorted { result[$0].header.instance < result[$1].header.instance }
        for (number, index) in harts.enumerated() {
            let fields = try SectionFields(result[index], description)
            var lost: UInt64 = 0
            if !fields.hasSubsection("cpu/timer"), Self.isArmed(try fields.value("env.stimecmp")) {
                lost |= Self.supervisorTimer
            }
            if number < machineTimers.count, Self.isArmed(machineTimers[number]) { lost |= Self.machineTimer }
            guard lost != 0 else { continue }
            try fields.set("env.mip", to: fields.value("env.mip") | lost, in: &result[index])
            guard
                let common = result.firstIndex(where: {
                    $0.header.name == "cpu_common" && $0.header.instance == result[index].header.instance
                })
            else { throw Refusal("the old QEMU sends no section cpu_common for section \(result[index].name)") }
            let commonFields = try SectionFields(result[common], description)
            try commonFields.set(
                "interrupt_request", to: commonFields.value("interrupt_request") | Self.hardInterrupt,
                in: &result[common])
        }
        return result
    }

    /// Of each hart, as the board's timers have them; none where they go along.
    private func deadlines(_ sections: [UnreadSection], _ description: VMDescription) throws -> [UInt64] {
        try sections.filter { $0.header.name == "riscv_mtimer" && $0.header.version < Self.machineTimersVersion }
            .sorted { $0.header.instance < $1.header.instance }
            .flatMap { try SectionFields($0, description).values("timecmp") }
    }

    /// Not as after reset, and not never.
    private static func isArmed(_ deadline: UInt64) -> Bool { deadline != 0 && deadline != .max }
}

/// Where the fields of a section stand, by its description.
private struct SectionFields {
    private let section: UnreadSection
    private let content: StructureDescription

    init(_ section: UnreadSection, _ description: VMDescription) throws {
        guard let device = description.device(section.header.name, instance: section.header.instance),
            device.undescribedByteCount == nil, device.content.byteCount == UInt64(section.body.count)
        else { throw Refusal("section \(section.name) is not as the old QEMU describes it") }
        self.section = section
        content = device.content
    }

    func hasSubsection(_ name: String) -> Bool { content.subsections.contains { $0.name == name } }

    /// The elements of a field, one after the other.
    private func places(_ name: String) -> [Range<Int>] {
        var places: [Range<Int>] = []
        var position = 0
        for field in content.fields {
            let byteCount = Int(field.byteCount)
            for _ in 0..<field.elementCount {
                if field.name == name { places.append(position..<position + byteCount) }
                position += byteCount
            }
        }
        return places
    }

    private func place(_ name: String) throws -> Range<Int> {
        let found = places(name)
        guard found.count == 1, (1...8).contains(found[0].count) else {
            throw Refusal("section \(section.name) has no field \(name) that can be read")
        }
        return found[0]
    }

    func values(_ name: String) throws -> [UInt64] {
        try places(name).map { place in
            guard (1...8).contains(place.count) else {
                throw Refusal("section \(section.name) has no field \(name) that can be read")
            }
            return section.body[place].reduce(0) { $0 << 8 | UInt64($1) }
        }
    }

    func value(_ name: String) throws -> UInt64 { section.body[try place(name)].reduce(0) { $0 << 8 | UInt64($1) } }

    func set(_ name: String, to value: UInt64, in section: inout UnreadSection) throws {
        var value = value
        for index in try place(name).reversed() {
            section.body[index] = UInt8(truncatingIfNeeded: value)
            value >>= 8
        }
    }

}

/// The way of a guest's state from one QEMU to another, timers mended.
package enum MendedPassage {
    /// Passes one stream, on the calling thread, until its end.
    /// - Parameters:
    ///   - source: The socket on which the old QEMU sends, its return path on.
    ///   - ignoresShared: Shared memory is not sent.
    /// - Returns: Why it failed; nil when the destination has all.
    package static func run(from source: OwnedDescriptor, to destination: OwnedDescriptor, ignoresShared: Bool)
        -> String?
    {
        do {
            let relay = StreamRelay(
                from: try DescriptorTransport(name: "the old process", socket: source),
                to: try DescriptorTransport(name: "the new process", socket: destination), ignoresShared: ignoresShared)
            var mender = TimerMender()
            try relay.run(&mender)
            return nil
        } catch { return "\(error)" }
    }
}
