import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import ProcessTestKit
import Testing

@Suite("XBZRLE") struct DifferenceTests {
    static func configuration(cacheByteCount: UInt64 = 16 << 20) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities.insert(.xbzrle)
        configuration.parameters.xbzrleCacheByteCount = cacheByteCount
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.roundLimit = 12
        return configuration
    }

    @Test(
        "a guest arrives with every page right, whatever the cache remembers",
        arguments: [4096, 64 << 10, 16 << 20] as [UInt64])
    func moves(cacheByteCount: UInt64) throws {
        var script = Rig.script(threads: 2, rate: 6000)
        script.pattern = .hotSpot(percent: 5)
        let rig = try Rig(script: script, pages: [1500, 3, 200])
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.ends(Self.configuration(cacheByteCount: cacheByteCount), observer: rig.writesInEachRound)
        #expect(try Rig.run(ends).source == .guestMoved, "\(String(describing: ends.source.progress.error))")
        #expect(rig.destination.waitForWrites(100))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        let counts = try #require(ends.source.progress.ram.xbzrle)
        #expect(counts.lookedAtPageCount > 0 && counts.missCount > 0)
    }

    @Test("with the capability off nothing is remembered") func off() throws {
        let rig = try Rig()
        defer { rig.end() }
        let ends = try rig.ends()
        #expect(try Rig.run(ends).source == .guestMoved)
        #expect(ends.source.progress.ram.xbzrle == nil)
    }

    /// Memory of random contents, of whose every page a few bytes change in each pass.
    static func changing(_ byteCount: Int) throws -> (EmptyMachine, @Sendable (MigrationProgress) -> Void) {
        let machine = try EmptyMachine(byteCount: byteCount)
        let base = machine.ramBlocks[0].base
        for word in 0..<(byteCount / 8) {
            base.storeBytes(of: UInt64(word) &* 0x9e37_79b9_7f4a_7c15, toByteOffset: word * 8, as: UInt64.self)
        }
        machine.resume()
        return (
            machine,
            { progress in
                guard progress.status == .active else { return }
                let block = machine.ramBlocks[0]
                for page in 0..<block.pageCount {
                    block.base.storeBytes(
                        of: UInt8(progress.ram.dirtySyncCount), toByteOffset: page * 4096 + 77, as: UInt8.self)
                    block.dirty.mark(page: page)
                }
            }
        )
    }

    @Test("a page of which little changes costs little") func fewBytes() throws {
        let (machine, change) = try Self.changing(1 << 20)
        let twin = try EmptyMachine(byteCount: 1 << 20)
        let pair = try Rig.pair()
        let source = MigrationSource(
            guest: machine, transport: pair.0, configuration: Self.configuration(), observer: change)
        let destination = MigrationDestination(guest: twin, transport: pair.1, configuration: Self.configuration())
        #expect(try Rig.run(Rig.Ends(source: source, destination: destination)).source == .guestMoved)
        #expect(memcmp(machine.ramBlocks[0].base, twin.ramBlocks[0].base, 1 << 20) == 0)
        let counts = try #require(source.progress.ram.xbzrle)
        #expect(counts.pageCount > 1000 && counts.byteCount < counts.pageCount * 16, "\(counts)")
        #expect(counts.overflowCount == 0)
    }

    @Test("a stock QEMU takes the differences, and has the memory that we have", .enabled(if: EmptyQEMU.path != nil))
    func stock() throws {
        let directory = try TemporaryDirectory()
        let (there, back) = (directory.path + "/there", directory.path + "/back")
        let (machine, change) = try Self.changing(StockQEMUTests.byteCount)
        let qemu = try EmptyQEMU(incoming: "unix:" + there)
        var configuration = Self.configuration()
        configuration.layout = .qemu7_2
        let source = MigrationSource(
            guest: machine, transport: try DescriptorTransport.connected(to: .unix(path: there)),
            configuration: configuration,
            observer: change)
        #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
        #expect(try qemu.waitForMigration() == "completed")
        #expect(source.progress.ram.xbzrle!.pageCount > 1000)
        let twin = try EmptyMachine(byteCount: StockQEMUTests.byteCount)
        let listener = try StreamSocket.listen(at: .unix(path: back))
        try qemu.command("migrate", ["uri": "unix:" + back])
        let destination = MigrationDestination(
            guest: twin, transport: try DescriptorTransport.accepted(from: listener),
            configuration: StockQEMUTests.configuration(returnPath: false))
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        #expect(memcmp(machine.ramBlocks[0].base, twin.ramBlocks[0].base, StockQEMUTests.byteCount) == 0)
    }
}
