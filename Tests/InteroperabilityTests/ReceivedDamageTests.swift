import LinuxCalls
import MigrationStream
import ProcessTestKit
import Testing

/// As ``DamagedStreamTests``, but there is no machine that says what must come: `sidestep receive` builds it from the stream.
@Suite(
    "sidestep receive with a damaged stream", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"))
struct ReceivedDamageTests {
    private struct Attempt {
        let run: MonitorRun
        let captured: CapturedStream
        private let arguments: [String]

        init(_ name: String) throws {
            run = try MonitorRun()
            captured = try CapturedStream(name)
            var arguments = ["--console", "null"]
            if captured.sections.contains(where: { $0.header.name.hasSuffix("/virtio-blk") }) {
                let disk = run.directory.file("disk")
                try HostTools.need("truncate", ["-s", "1M", disk])
                arguments += ["--disk", "path=\(disk)"]
            }
            self.arguments = arguments
        }

        func start(_ bytes: [UInt8]) throws -> RunningProgram {
            let file = try run.directory.write(bytes, to: "stream")
            return try RunningProgram(
                Checkout.tool, ["receive", "guest", "file:\(file)"] + arguments, name: "sidestep",
                environment: run.environment, limitSeconds: 180)
        }

        /// It is taken, and the guest is paused as it was.
        func expectWhole(_ bytes: [UInt8]) throws {
            let program = try start(bytes)
            var text = ""
            for _ in 0..<300 where !text.contains("guest is paused") {
                try HostTools.need("sleep", ["0.1"])
                text = try run.command(["status", "guest"]).output
            }
            #expect(text.contains("guest is paused"), "\(text) \(program.errors.text)")
            #expect(try run.command(["stop", "guest"]).end == .exited(status: 0))
            try program.waitForEnd(seconds: 60)
        }

        /// Nothing is started, and what is said has the words, and what to do behind a semicolon or a colon.
        func expectRefusal(_ bytes: [UInt8], _ what: String, _ words: String...) throws {
            let program = try start(bytes)
            // Ends by itself, and with this status only when nothing ran.
            let end = try program.waitForEnd(seconds: 60)
            try? program.errors.wait(seconds: 30, what: "its end") { _ in nil as Void? }
            let text = program.errors.text
            #expect(
                [.exited(status: 65), .exited(status: 84)].contains(end), "\(captured.name): \(what): \(end) \(text)")
            for word in words { #expect(text.contains(word), "\(captured.name): \(what): \(text)") }
            #expect(text.contains("; ") || text.contains("--"), "\(captured.name): \(what), and then? \(text)")
        }
    }

    static let streams = ["virt-devices-7.2", "booted-modern-10.0"]

    @Test("a whole one is taken, and its guest stays paused when its source was stopped", arguments: streams)
    func whole(name: String) throws {
        let attempt = try Attempt(name)
        try attempt.expectWhole(EditedStream(attempt.captured).bytes)
    }

    @Test(
        "each section missing, doubled, cut, too long, of another version or without its end is refused by its name",
        arguments: streams)
    func sections(name: String) throws {
        let attempt = try Attempt(name)
        let whole = EditedStream(attempt.captured)
        for (index, section) in whole.sections.enumerated() {
            var edited = whole
            edited.sections.remove(at: index)
            try attempt.expectRefusal(edited.bytes, "without \(section.name)", section.header.name)
            edited = whole
            edited.sections.insert(section, at: index)
            try attempt.expectRefusal(edited.bytes, "\(section.name) twice", section.header.name, "again")
            edited = whole
            edited.sections[index].body.removeLast()
            try attempt.expectRefusal(edited.bytes, "\(section.name) cut", section.header.name)
            edited = whole
            edited.sections[index].body.append(0)
            try attempt.expectRefusal(edited.bytes, "\(section.name) too long", section.header.name)
            edited = whole
            edited.sections[index].header.version += 90
            try attempt.expectRefusal(edited.bytes, "\(section.name) newer", section.header.name, "version")
            edited = whole
            edited.withoutFooter = index
            try attempt.expectRefusal(edited.bytes, "\(section.name) without footer", section.header.name)
            edited = whole
            edited.sections.removeSubrange((index + 1)...)
            try attempt.expectRefusal(
                Array(edited.bytes.dropLast(edited.tailByteCount + 1)), "cut in \(section.name)",
                section.header.name)
        }
    }

    @Test("a device that the guest uses is missed even where the source describes nothing")
    func undescribed() throws {
        let attempt = try Attempt("booted-modern-10.0")
        var whole = EditedStream(attempt.captured)
        whole.isDescribed = false
        var count = 0
        for (index, section) in whole.sections.enumerated() where section.header.name.hasPrefix("virtio-mmio@") {
            // DRIVER_OK.
            guard section.body[12] & 4 != 0 else { continue }
            count += 1
            var edited = whole
            edited.sections.remove(at: index)
            try attempt.expectRefusal(
                edited.bytes, "without \(section.name), undescribed", "no section of the virtio device in slot")
        }
        #expect(count > 0, "a guest that uses none shows nothing")
        try attempt.expectWhole(whole.bytes)
    }

    @Test("another machine, RAM of another size or of a device, a damaged section ram", arguments: streams)
    func machines(name: String) throws {
        let attempt = try Attempt(name)
        var edited = EditedStream(attempt.captured)
        edited.machineName = "spike"
        try attempt.expectRefusal(edited.bytes, "another machine", "spike", "virt")
        edited = EditedStream(attempt.captured)
        let index = try #require(edited.blocks.firstIndex { $0.name == "virt.flash1" })
        edited.blocks[index].byteCount *= 2
        try attempt.expectRefusal(edited.bytes, "a larger flash", "virt.flash1")
        edited = EditedStream(attempt.captured)
        edited.blocks.append(RAMBlockDescription(name: "0000:00:02.0/vga.vram", byteCount: 4096))
        try attempt.expectRefusal(edited.bytes, "a graphics card", "vga.vram", "start it without")
        edited = EditedStream(attempt.captured)
        edited.blocks.removeLast()
        try attempt.expectRefusal(edited.bytes, "a block less", "RAM block")
        for damage in EditedStream.RAMDamage.allCases {
            edited = EditedStream(attempt.captured)
            edited.ram = damage
            try attempt.expectRefusal(edited.bytes, "ram \(damage)", "section ram")
        }
    }
}
