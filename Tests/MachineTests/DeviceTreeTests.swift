import Glibc
import Machine
import ProcessTestKit
import Testing

/// A node of a flattened device tree, read back.
struct TreeNode: Equatable {
    var properties: [String: [UInt8]] = [:]
    var children: [String: TreeNode] = [:]

    init(blob: [UInt8]) throws {
        func word(_ offset: Int) -> Int { blob[offset..<offset + 4].reduce(0) { $0 << 8 | Int($1) } }
        try #require(blob.count >= 40 && word(0) == 0xd00d_feed)
        let strings = word(12)
        var position = word(8)
        func text(_ offset: Int) -> String { String(decoding: blob[offset...].prefix { $0 != 0 }, as: UTF8.self) }
        func node() throws -> TreeNode {
            var node = TreeNode()
            while true {
                let token = word(position)
                position += 4
                switch token {
                case 1:
                    let name = text(position)
                    position += (name.utf8.count + 4) / 4 * 4
                    node.children[name] = try node_()
                case 2: return node
                case 3:
                    let count = word(position)
                    let name = text(strings + word(position + 4))
                    node.properties[name] = Array(blob[position + 8..<position + 8 + count])
                    position += 8 + (count + 3) / 4 * 4
                case 4: continue
                default: throw TreeError()
                }
            }
        }
        func node_() throws -> TreeNode { try node() }
        try #require(word(position) == 1)
        position += 8
        self = try node()
    }

    private init() {}
    struct TreeError: Error {}

    subscript(_ path: String) -> TreeNode? {
        path.split(separator: "/").reduce(Optional(self)) { $0?.children[String($1)] }
    }

    func strings(_ name: String) -> [String] {
        (properties[name] ?? []).split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
    }

    func cells(_ name: String) -> [UInt32] {
        let bytes = properties[name] ?? []
        return stride(from: 0, to: bytes.count - 3, by: 4).map { start in
            bytes[start..<start + 4].reduce(0) { $0 << 8 | UInt32($1) }
        }
    }
}

@Suite("Device tree") struct DeviceTreeTests {
    private func tree(_ change: (inout MachineConfiguration) -> Void = { _ in }) throws -> TreeNode {
        let firmware = try ScratchFile([1])
        var configuration = smallConfiguration()
        configuration.firmwarePath = firmware.path
        change(&configuration)
        let machine = try VirtMachine(
            configuration: configuration, backends: MachineBackends(serial: RecordingConsole()),
            processors: ScriptedProcessor.factory { _ in .waiting(untilNanoseconds: nil) })
        defer { machine.shutDown() }
        try machine.loadImages()
        let address: UInt64 = try machine.memory.load(0x1020)
        let byteCount = try machine.memory.load(address + 4, as: UInt32.self).byteSwapped
        return try TreeNode(blob: machine.memory.bytes(at: address, count: Int(byteCount)))
    }

    @Test("each hart has a node with its extensions, and its interrupt controller is wired")
    func harts() throws {
        let tree = try tree {
            $0.hartCount = 3
            $0.isa = "rv64imafdc_zicntr_zba_sstc_sv48"
        }
        let cpus = try #require(tree["cpus"])
        #expect(cpus.children.keys.sorted() == ["cpu-map", "cpu@0", "cpu@1", "cpu@2"])
        let hart = try #require(cpus["cpu@2"])
        #expect(hart.strings("riscv,isa") == ["rv64imafdc_zicntr_zicsr_zifencei_zba_sstc"])
        #expect(hart.strings("riscv,isa-extensions").contains("zba"))
        #expect(hart.strings("mmu-type") == ["riscv,sv48"])
        #expect(hart.cells("reg") == [2])
        let handles = try (0..<3).map { try #require(cpus["cpu@\($0)/interrupt-controller"]).cells("phandle")[0] }
        #expect(Set(handles).count == 3)
        #expect(
            try #require(tree["soc/plic@c000000"]).cells("interrupts-extended") == handles.flatMap { [$0, 11, $0, 9] })
        #expect(
            try #require(tree["soc/clint@2000000"]).cells("interrupts-extended") == handles.flatMap { [$0, 3, $0, 7] })
    }

    @Test("only slots with a device have a node")
    func virtio() throws {
        #expect(try #require(tree()["soc"]).children.keys.filter { $0.hasPrefix("virtio") }.isEmpty)
        let two = try tree {
            $0.devices = [.init(kind: .entropy, identifier: "a"), .init(kind: .entropy, identifier: "b")]
        }
        let soc = try #require(two["soc"])
        #expect(
            soc.children.keys.filter { $0.hasPrefix("virtio") }.sorted() == [
                "virtio_mmio@10007000", "virtio_mmio@10008000",
            ])
        #expect(soc["virtio_mmio@10008000"]?.cells("interrupts") == [8])
    }

    @Test("the command line is there when there is one, and the seed is new each time")
    func chosen() throws {
        let first = try #require(tree { $0.kernelCommandLine = "a=b c" }["chosen"])
        let second = try #require(tree()["chosen"])
        #expect(first.strings("bootargs") == ["a=b c"])
        #expect(second.properties["bootargs"] == nil)
        #expect(first.properties["rng-seed"]?.count == 32)
        #expect(first.properties["rng-seed"] != second.properties["rng-seed"])
    }

    @Test(
        "stock QEMU has the same nodes with the same values",
        .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
    func likeQEMU() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("virt.dtb")
        _ = try HostTools.need(
            StockQEMUBuild.installed,
            ["-M", "virt,dumpdtb=\(file)", "-m", "16M", "-smp", "2", "-display", "none", "-bios", "none"])
        let handle = try #require(fopen(file, "r"))
        defer { fclose(handle) }
        var blob = [UInt8](repeating: 0, count: 1 << 20)
        blob.removeLast(blob.count - fread(&blob, 1, blob.count, handle))
        let theirs = try TreeNode(blob: blob)
        let ours = try tree {
            $0.hartCount = 2
            $0.devices = (0..<8).map { .init(kind: .entropy, identifier: "\($0)") }
        }
        /// Numbers of our own choice, what depends on the version of QEMU, and the processor's own.
        let ignored: Set<String> = [
            "phandle", "interrupt-parent", "interrupts-extended", "regmap", "cpu", "rng-seed", "riscv,ndev", "bootargs",
            "riscv,isa", "riscv,isa-base", "riscv,isa-extensions", "mmu-type", "riscv,cbom-block-size",
            "riscv,cbop-block-size", "riscv,cboz-block-size",
        ]
        func compare(_ ours: TreeNode, _ theirs: TreeNode, _ path: String) {
            for (name, value) in theirs.properties where !ignored.contains(name) {
                #expect(ours.properties[name] == value, "\(path) \(name)")
            }
            for name in ours.properties.keys where !ignored.contains(name) {
                #expect(theirs.properties[name] != nil, "\(path) \(name) is not QEMU's")
            }
            for (name, child) in ours.children {
                guard let other = theirs.children[name] else {
                    // Newer QEMUs have it.
                    if name != "aliases" { Issue.record("QEMU has no \(path)/\(name)") }
                    continue
                }
                compare(child, other, "\(path)/\(name)")
            }
        }
        compare(ours, theirs, "")
        // What this machine has not, or does not tell of.
        func missing(_ ours: TreeNode, _ theirs: TreeNode, _ path: String) -> [String] {
            theirs.children.flatMap { name, child in
                ours.children[name].map { missing($0, child, "\(path)/\(name)") } ?? ["\(path)/\(name)"]
            }
        }
        #expect(Set(missing(ours, theirs, "")).isSubset(of: ["/pmu", "/platform-bus@4000000", "/soc/pci@30000000"]))
    }
}
