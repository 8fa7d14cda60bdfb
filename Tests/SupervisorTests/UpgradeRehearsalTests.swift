import Glibc
import LinuxCalls
import Machine
import Testing

@testable import Supervisor

@Suite("Rehearsal of an upgrade") struct UpgradeRehearsalTests {
    @Test("is the saving of a guest with every kind of device, and leaves the disk as it is")
    func rehearses() throws {
        let path = try TemporaryDirectory.make()
        let disk = path + "/disk"
        let contents = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 13) }
        try OwnedDescriptor.open(disk, flags: O_WRONLY | O_CREAT).writeAll(contents)
        let directory = try RunDirectory.adopt(
            name: "rehearsed", path: path, lock: try OwnedDescriptor.open(path + "/lock", flags: O_RDWR | O_CREAT))
        defer { directory.remove() }
        let loop = try EventLoop(name: "monitor")
        defer { loop.stop() }
        var configuration = RunConfiguration()
        configuration.name = "rehearsed"
        configuration.disks = [DiskConfiguration(path: disk)]
        configuration.networks = [NetworkConfiguration(kind: .unplugged)]
        let backends = try GuestBackends(configuration, directory: directory, loop: loop, quit: {})
        defer { backends.close() }

        var small = configuration.machineConfiguration
        small.memoryByteCount = MachineConfiguration.memoryByteCountRange.lowerBound
        let machine = try VirtMachine(configuration: small, backends: backends.machineBackends)
        defer { machine.shutDown() }
        let guest = VirtGuest(machine: machine, events: VirtGuest.EventSink(), backends: backends)
        // The parts that are the same processor's in the guest.
        let spares = try machine.makeSpareProcessor().map(\.sectionName)
        #expect(!spares.isEmpty && spares.allSatisfy { name in guest.components.contains { $0.sectionName == name } })

        let rehearsal = try UpgradeRehearsal(guest, backends: backends)
        for _ in 0..<2 { try rehearsal.run() }

        var found = [UInt8](repeating: 0, count: contents.count)
        let file = try OwnedDescriptor.open(disk, flags: O_RDONLY)
        let count = found.withUnsafeMutableBytes { pread(file.rawValue, $0.baseAddress, $0.count, 0) }
        #expect(count == contents.count && found == contents)
        unlink(disk)
    }
}
