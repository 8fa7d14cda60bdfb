import Glibc
import GuestMemory
import GuestTime
import LinuxCalls
import ProcessorModel
import RISCVProcessor
import Synchronization

struct OracleError: Error, CustomStringConvertible {
    var description: String
}

/// QEMU's `virt` machine, on memory that it shares with us.
enum QEMUMachine {
    static let path: String? = ["/usr/bin", "/usr/local/bin"].map { $0 + "/qemu-system-riscv64" }
        .first { access($0, X_OK) == 0 }

    /// Runs the image to its end.
    static func run(_ image: OracleImage) throws -> RAMBlock {
        let block = try RAMBlock(name: "oracle", byteCount: OracleImage.byteCount, backend: .memfd)
        image.write(to: block)
        let size = "\(OracleImage.byteCount >> 20)M"
        let process = try ChildProcess(
            path: path!,
            arguments: [
                "-M", "virt,memory-backend=ram", "-m", size,
                "-object", "memory-backend-file,id=ram,size=\(size),mem-path=/proc/self/fd/10,share=on",
                "-cpu", "rv64,h=off,sstc=off,pmu-num=0,debug=off,zba=on,zbb=on,zbc=on,zbs=on",
                "-bios", "none", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none",
            ], descriptors: [10: block.file!])
        guard let end = process.wait(timeoutMilliseconds: 60_000) else {
            process.kill()
            _ = process.wait()
            throw OracleError(description: "QEMU did not come to the end of the test program")
        }
        guard end == .exited(status: 0) else { throw OracleError(description: "QEMU ended with \(end)") }
        return block
    }
}

/// Our hart alone, with a bus that has nothing but the test finisher and a timer that never fires.
enum HartMachine {
    private final class Bus: ProcessorBus {
        let isFinished = Atomic<Bool>(false)
        private let hart = Mutex<RISCVHart?>(nil)

        func attach(_ hart: RISCVHart) { self.hart.withLock { $0 = hart } }
        func kick() { hart.withLock { $0 }?.kick() }

        func load(address: UInt64, width: Int) -> UInt64? { nil }
        func store(address: UInt64, width: Int, value: UInt64) -> Bool {
            switch address {
            case OracleRuntime.finisherAddress:
                isFinished.store(true, ordering: .releasing)
                kick()
                return true
            case 0x200_4000: return true
            default: return false
            }
        }
    }

    static let isa = "rv64imafdc_zicsr_zifencei_zicntr_zihintpause_zba_zbb_zbc_zbs_svadu_sv57"

    /// Runs the image to its end.
    static func run(_ image: OracleImage) throws -> RAMBlock {
        let block = try RAMBlock(name: "oracle", byteCount: OracleImage.byteCount, backend: .memfd)
        image.write(to: block)
        let memory = GuestMemory(regions: [MemoryRegion(address: OracleRuntime.base, block: block)])
        let bus = Bus()
        let clock = VirtualClock()
        let hart = try RISCVHart.makeHarts(
            count: 1, configuration: try RISCVConfiguration(isa: isa), memory: memory, bus: bus, clock: clock)[0]
        bus.attach(hart)
        hart.resetVector = OracleRuntime.base
        hart.reset()
        let done = WaitWord()
        let watchdog = try HostThread(name: "oracle-watchdog") {
            let deadline = monotonicNanoseconds() + 60_000_000_000
            while done.load() == 0 {
                let rest = deadline - monotonicNanoseconds()
                if rest <= 0 { return bus.kick() }
                done.wait(while: 0, timeoutNanoseconds: rest)
            }
        }
        defer {
            done.store(1)
            watchdog.join()
        }
        let exit = hart.run()
        guard bus.isFinished.load(ordering: .acquiring) else {
            throw OracleError(description: "the hart stopped with \(exit) at \(hart.registerDump())")
        }
        return block
    }
}
