import Foundation
import MigrationStream
import Supervisor
import Testing

@Suite("Streams in files")
struct StreamFilesTests {
    @Test("a whole file is analysed, a cut one says where, a missing one is refused")
    func files() throws {
        let directory = FileManager.default.temporaryDirectory.appending(path: "streams-\(UUID())")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }
        func write(_ bytes: [UInt8], to name: String) throws -> String {
            try Data(bytes).write(to: directory.appending(path: name))
            return directory.appending(path: name).path
        }
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: "virt"))
        writer.beginSection(SectionHeader(.full, id: 1, name: "timer", version: 2))
        writer.writeZeroes(24)
        writer.endSection(id: 1)
        writer.writeEndOfStream()
        writer.writeDescription()
        let whole = try StreamFiles.analyse(path: write(writer.bytes, to: "whole"))
        #expect(whole.failure == nil)
        #expect(whole.report.isComplete && whole.report.byteCount == UInt64(writer.count))
        #expect(whole.report.sections.map { $0.byteCount } == [24])
        let cut = try StreamFiles.analyse(path: write(Array(writer.bytes.prefix(40)), to: "cut"))
        #expect(cut.failure != nil && cut.report.configuration?.machineName == "virt")
        #expect(throws: Refusal.self) { try StreamFiles.analyse(path: directory.appending(path: "nothing").path) }
    }
}
