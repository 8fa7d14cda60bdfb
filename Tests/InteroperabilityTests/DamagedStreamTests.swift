import ComponentState
import Machine
import MigrationEngine
import MigrationStream
import Supervisor
import Testing

/// Streams of stock QEMU with something wrong: each is refused before the guest could run, in words that name what it is.
@Suite("Damaged streams of stock QEMU") struct DamagedStreamTests {
    static let streams = ["virt-devices-7.2", "virt-devices-10.0", "booted-legacy-7.2", "booted-modern-10.0"]

    private struct Attempt {
        let captured: CapturedStream
        let machine: VirtMachine
        let guest: VirtGuest

        init(_ name: String) throws {
            captured = try CapturedStream(name)
            machine = try InteroperabilityTests.machine(for: captured)
            guest = VirtGuest(machine: machine, events: VirtGuest.EventSink())
        }

        func run(_ stream: EditedStream) -> (outcome: MigrationOutcome, progress: MigrationProgress, answer: [UInt8]) {
            run(stream.bytes)
        }

        func run(_ bytes: [UInt8]) -> (outcome: MigrationOutcome, progress: MigrationProgress, answer: [UInt8]) {
            let sink = Sink(hasReturnPath: true)
            var configuration = MigrationConfiguration()
            configuration.staysPaused = true
            let destination = MigrationDestination(
                guest: guest, transport: ReplayedTransport(bytes, then: sink), configuration: configuration)
            let outcome = destination.run()
            return (outcome, destination.progress, sink.bytes)
        }

        /// It is refused, the source hears it, the guest does not run, and the words are there.
        func expectRefusal(
            _ stream: EditedStream, _ what: String, _ code: MigrationError.Code?, saying words: String...
        ) {
            let (outcome, progress, answer) = run(stream)
            #expect(outcome == .guestStayed && !machine.isRunning, "\(captured.name): \(what)")
            let text = progress.error.map(\.description) ?? "no error"
            if let code { #expect(progress.error?.code == code, "\(captured.name): \(what): \(text)") }
            for word in words { #expect(text.contains(word), "\(captured.name): \(what): \(text)") }
            // Message 1, four bytes, 1: the source is told that its guest was not taken.
            if progress.error?.code != .channelClosed {
                #expect(answer == [0, 1, 0, 4, 0, 0, 0, 1], "\(captured.name): \(what)")
            }
        }
    }

    /// Sections of the host's alone, which may be missing.
    private static let surplus: Set<String> = ["slirp", "virt_acpi_build"]

    @Test("a whole one is taken, a stopped source's guest stays paused", arguments: streams)
    func whole(name: String) throws {
        let attempt = try Attempt(name)
        let (outcome, progress, _) = attempt.run(EditedStream(attempt.captured))
        #expect(outcome == .guestMoved, "\(String(describing: progress.error))")
        #expect(!attempt.machine.isRunning)
        if attempt.captured.sections.contains(where: { $0.header.name == "slirp" }) {
            #expect(progress.notices.contains { $0.contains("section slirp") })
        }
        attempt.machine.shutDown()
    }

    @Test(
        "a section that is missing, doubled, cut, too long, of another version, or without an end", arguments: streams)
    func sections(name: String) throws {
        let attempt = try Attempt(name)
        let whole = EditedStream(attempt.captured)
        for (index, section) in whole.sections.enumerated() {
            let sectionName = section.header.name
            var edited = whole
            if !Self.surplus.contains(sectionName) {
                edited.sections.remove(at: index)
                attempt.expectRefusal(edited, "without \(section.name)", .missingSection, saying: sectionName, "; ")
                edited = whole
            }
            edited.sections.insert(section, at: index)
            attempt.expectRefusal(edited, "\(section.name) twice", .doubledSection, saying: sectionName, "again")
            edited = whole
            edited.sections[index].body.removeLast()
            attempt.expectRefusal(edited, "\(section.name) cut", nil, saying: sectionName)
            edited = whole
            edited.sections[index].body.append(0)
            attempt.expectRefusal(edited, "\(section.name) too long", .streamMalformed, saying: sectionName, "size")
            edited = whole
            edited.sections[index].header.version += 90
            attempt.expectRefusal(
                edited, "\(section.name) newer", .stateRejected, saying: sectionName, "version", "release")
            edited = whole
            edited.withoutFooter = index
            attempt.expectRefusal(edited, "\(section.name) without footer", nil, saying: sectionName)
        }
        attempt.machine.shutDown()
    }

    @Test("one that ends within a section", arguments: streams) func cut(name: String) throws {
        let attempt = try Attempt(name)
        let whole = EditedStream(attempt.captured)
        for (index, section) in whole.sections.enumerated() {
            var edited = whole
            edited.sections.removeSubrange((index + 1)...)
            let bytes = Array(edited.bytes.dropLast(edited.tailByteCount + 1))
            let (outcome, progress, _) = attempt.run(bytes)
            #expect(outcome == .guestStayed && progress.error?.code == .channelClosed, "\(section.name)")
            #expect(progress.error?.message.contains(section.header.name) == true, "\(progress.error!)")
        }
        attempt.machine.shutDown()
    }

    @Test("one with a section that nobody has", arguments: streams) func unknown(name: String) throws {
        let attempt = try Attempt(name)
        var edited = EditedStream(attempt.captured)
        edited.sections.append(
            UnreadSection(header: SectionHeader(.full, id: 7777, name: "0000:00:01.0/virtio-net"), body: [0]))
        attempt.expectRefusal(
            edited, "a PCI card", .unknownSection, saying: "0000:00:01.0/virtio-net", "start the source without it")
        attempt.machine.shutDown()
    }

    @Test("one of another machine, with other RAM, or with RAM of a device that is not here", arguments: streams)
    func machines(name: String) throws {
        let attempt = try Attempt(name)
        var edited = EditedStream(attempt.captured)
        edited.machineName = "spike"
        attempt.expectRefusal(edited, "another machine", .machineMismatch, saying: "spike", "virt")
        edited = EditedStream(attempt.captured)
        let index = try #require(edited.blocks.firstIndex { $0.name == "riscv_virt_board.ram" })
        edited.blocks[index].byteCount *= 2
        attempt.expectRefusal(
            edited, "other RAM", .ramMismatch, saying: "riscv_virt_board.ram", "give both sides", "the same RAM")
        edited = EditedStream(attempt.captured)
        edited.blocks.append(RAMBlockDescription(name: "0000:00:02.0/vga.vram", byteCount: 4096))
        attempt.expectRefusal(edited, "a graphics card", .ramMismatch, saying: "vga.vram")
        edited = EditedStream(attempt.captured)
        edited.blocks.removeLast()
        attempt.expectRefusal(edited, "a block less", .ramMismatch, saying: "no RAM block")
        attempt.machine.shutDown()
    }

    @Test("one whose section ram is missing, has no end, or is damaged in another way", arguments: streams)
    func ram(name: String) throws {
        let attempt = try Attempt(name)
        for damage in EditedStream.RAMDamage.allCases {
            var edited = EditedStream(attempt.captured)
            edited.ram = damage
            attempt.expectRefusal(edited, "ram \(damage)", nil, saying: "section ram", "; ")
        }
        attempt.machine.shutDown()
    }

    @Test("a bridge passes none with a section missing or doubled, or a cut one that it rewrites", arguments: streams)
    func bridged(name: String) throws {
        let whole = EditedStream(try CapturedStream(name))
        let target: StateLayout = name.hasSuffix("7.2") ? .qemu10_0 : .qemu11_1
        func expectRefusal(_ edited: EditedStream, _ what: String, _ word: String) {
            let source = Sink(hasReturnPath: true)
            let relay = StreamRelay(from: ReplayedTransport(edited.bytes, then: source), to: Sink())
            var rewriter = BridgeRewriter(target: target, judgesQueues: false)
            do {
                try relay.run(&rewriter)
                Issue.record("\(name): \(what) passed")
            } catch { #expect(error.description.contains(word), "\(name): \(what): \(error)") }
            #expect(source.bytes == [0, 1, 0, 4, 0, 0, 0, 1], "\(name): \(what)")
        }
        for (index, section) in whole.sections.enumerated() {
            var edited = whole
            edited.sections.remove(at: index)
            expectRefusal(edited, "without \(section.name)", section.header.name)
            edited = whole
            edited.sections.insert(section, at: index)
            expectRefusal(edited, "\(section.name) twice", section.name)
            guard ["cpu", "cpu_common", "timer", "riscv_mtimer"].contains(section.header.name) else { continue }
            edited = whole
            edited.sections[index].body.removeLast()
            expectRefusal(edited, "\(section.name) cut", section.header.name)
            edited = whole
            edited.sections[index].body.append(0)
            expectRefusal(edited, "\(section.name) too long", section.header.name)
            edited = whole
            edited.sections[index].header.version += 90
            expectRefusal(edited, "\(section.name) newer", section.header.name)
        }
        for damage in EditedStream.RAMDamage.allCases {
            var edited = whole
            edited.ram = damage
            expectRefusal(edited, "ram \(damage)", "section ram")
        }
    }
}
