import Foundation
import Glibc
import LinuxCalls
import MigrationChannels
import Testing

/// One scripted guest in processes of its own, observed through the memory it lives in.
final class Probe {
    let memory: ProbeMemory
    let child: ChildProcess
    private let lockPath: String

    init(_ settings: [String: String]) throws {
        let file = try MemoryFile.create(name: "probe", byteCount: ProbeMemory.byteCount)
        memory = try ProbeMemory(file)
        lockPath = NSTemporaryDirectory() + "sidestep-probe-\(UUID().uuidString)"
        _ = FileManager.default.createFile(atPath: lockPath, contents: nil)
        var environment = settings.map { "\($0.key)=\($0.value)" }
        environment.append("PROBE_LOCK=\(lockPath)")
        let tool = Bundle.main.bundleURL.appendingPathComponent("handover-probe").path
        child = try ChildProcess(
            path: tool, arguments: ["source"], environment: environment, descriptors: [3: file],
            newProcessGroup: true)
    }

    /// Everything this probe started is in one process group.
    func signalAll(_ signal: CInt) { kill(-child.processIdentifier, signal) }

    deinit {
        signalAll(SIGKILL)
        _ = child.wait()
        unlink(lockPath)
    }

    /// Waits until something holds; the limit is only for tests that fail.
    func waits(seconds: Double = 20, until condition: () -> Bool) -> Bool {
        let end = Date().addingTimeInterval(seconds)
        while Date() < end {
            if condition() { return true }
            usleep(2_000)
        }
        return condition()
    }

    /// Whether the guest makes steps. Answers as soon as it does; "no" takes `seconds`.
    func isTicking(seconds: Double = 20) -> Bool {
        let before = memory[.steps]
        return waits(seconds: seconds) { memory[.steps] > before + 3 }
    }

    func isAlive(_ process: UInt64) -> Bool {
        guard process != 0, let status = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8) else {
            return false
        }
        return !status.contains(") Z ")
    }

    func expectNoDoubleRun(_ location: SourceLocation = #_sourceLocation) {
        #expect(memory[.doubleRuns] == 0, "the guest ran twice", sourceLocation: location)
        #expect(
            memory[.staleStates] == 0, "the state that arrived was not the paused guest's", sourceLocation: location)
    }
}

@Suite("Exactly one runner, whatever dies", .serialized) struct OwnershipTests {
    @Test("a guest moves fifty times in a row and never runs twice")
    func moves() throws {
        let probe = try Probe(["PROBE_MOVES": "50"])
        #expect(probe.waits(seconds: 60) { probe.memory[.moves] == 50 })
        #expect(probe.isTicking())
        probe.expectNoDoubleRun()
    }

    @Test(
        "the destination is killed before it claimed: the source runs on, and the second attempt works",
        arguments: [1, 3, 6, 8, 9])
    func destinationKilled(step: Int) throws {
        let probe = try Probe(["PROBE_KILL": "destination:\(step)"])
        #expect(probe.waits { probe.memory[.moves] == 1 })
        #expect(probe.isTicking())
        #expect(probe.memory[.runner] != UInt64(probe.child.processIdentifier))
        probe.expectNoDoubleRun()
    }

    @Test("the destination is killed after it claimed: the guest died with its own process, and nobody else runs it")
    func destinationKilledAsOwner() throws {
        let probe = try Probe(["PROBE_KILL": "destination:10"])
        #expect(probe.child.wait(timeoutMilliseconds: 20_000) == .exited(status: 0))
        #expect(probe.memory[.sourceOutcome] == 1)
        #expect(!probe.isTicking(seconds: 0.3))
        probe.expectNoDoubleRun()
    }

    @Test(
        "the source is killed before its offer: the guest died with its own process", arguments: [1, 2, 3, 4, 5, 6, 7])
    func sourceKilled(step: Int) throws {
        let probe = try Probe(["PROBE_KILL": "source:\(step)"])
        #expect(probe.child.wait(timeoutMilliseconds: 20_000) == .signaled(signal: SIGKILL))
        #expect(probe.waits { !probe.isAlive(probe.memory[.destinationProcess]) }, "the destination must not linger")
        #expect(!probe.isTicking(seconds: 0.3))
        probe.expectNoDoubleRun()
    }

    @Test("the source is killed after its offer: the destination runs the guest", arguments: [9, 11])
    func sourceKilledAfterOffer(step: Int) throws {
        let probe = try Probe(["PROBE_KILL": "source:\(step)"])
        #expect(probe.child.wait(timeoutMilliseconds: 20_000) == .signaled(signal: SIGKILL))
        #expect(probe.isTicking())
        #expect(probe.memory[.runner] == probe.memory[.destinationProcess])
        probe.expectNoDoubleRun()
    }

    @Test("a destination that hangs before it claimed loses the guest to the source", arguments: [1, 3, 6, 8, 9])
    func destinationStopped(step: Int) throws {
        let probe = try Probe(["PROBE_STOP": "destination:\(step)", "PROBE_LIMIT": "1500"])
        #expect(probe.waits { probe.memory[.moves] == 1 })
        #expect(probe.isTicking())
        probe.expectNoDoubleRun()
    }

    @Test("a destination that hangs after it claimed keeps the guest")
    func destinationStoppedAsOwner() throws {
        let probe = try Probe(["PROBE_STOP": "destination:10", "PROBE_LIMIT": "2000"])
        #expect(probe.child.wait(timeoutMilliseconds: 20_000) == .exited(status: 0))
        #expect(probe.memory[.sourceOutcome] == 1)
        // The kernel may have let it go on already: its process group became orphaned. Or it is only about to stop.
        let before = probe.memory[.steps]
        #expect(
            probe.waits {
                probe.signalAll(SIGCONT)
                return probe.memory[.steps] > before + 3
            })
        #expect(probe.memory[.runner] == probe.memory[.destinationProcess])
        probe.expectNoDoubleRun()
    }

    @Test("a source that hangs at any step delays, and hurts nothing", arguments: [1, 2, 3, 4, 5, 6, 7, 9, 11])
    func sourceStopped(step: Int) throws {
        let probe = try Probe(["PROBE_STOP": "source:\(step)"])
        let source = UInt64(probe.child.processIdentifier)
        #expect(
            probe.waits {
                (try? String(contentsOfFile: "/proc/\(source)/stat", encoding: .utf8))?.contains(") T ") == true
            })
        probe.signalAll(SIGCONT)
        #expect(probe.waits { probe.memory[.moves] == 1 })
        #expect(probe.isTicking())
        probe.expectNoDoubleRun()
    }

    @Test(
        "a destination that refuses the state leaves the guest running at the source; the next attempt works",
        arguments: ["state", "part"])
    func refused(what: String) throws {
        let probe = try Probe(["PROBE_REFUSE": what])
        #expect(probe.waits { probe.memory[.moves] == 1 })
        #expect(probe.isTicking())
        probe.expectNoDoubleRun()
    }

    @Test("kill -9 of either side at random moments: never two runners, never none without reason")
    func randomKills() throws {
        let rounds = ProcessInfo.processInfo.environment["SIDESTEP_KILLS"].flatMap(Int.init) ?? 300
        var generator = SplitMix(seed: 0x5eed)
        var survived = 0
        for round in 0..<rounds {
            let probe = try Probe(["PROBE_MOVES": "1000000"])
            #expect(probe.waits { probe.memory[.moves] >= 1 })
            usleep(UInt32(generator.next() % 12_000))
            let killSource = generator.next() % 2 == 0
            let victim = killSource ? probe.memory[.sourceProcess] : probe.memory[.destinationProcess]
            let moves = probe.memory[.moves]
            probe.memory[.destinationOutcome] = 0
            probe.memory[.finalOwner] = 0
            kill(pid_t(victim), SIGKILL)
            #expect(probe.waits { !probe.isAlive(victim) })
            // Whatever is alive either runs the guest (moving on), or ended because the victim owned it.
            func isOver() -> Bool {
                ![ProbeMemory.Word.sourceProcess, .destinationProcess, .runner].contains {
                    probe.isAlive(probe.memory[$0])
                }
            }
            #expect(probe.waits { probe.memory[.moves] > moves + 1 || isOver() })
            let goesOn = probe.memory[.moves] > moves + 1
            if goesOn {
                survived += 1
            } else {
                let runner = probe.memory[.runner]
                let source = GuestOwner.source.rawValue
                let victimOwned =
                    runner == victim || probe.memory[.finalOwner] == UInt64(source) || !probe.isAlive(runner)
                #expect(victimOwned, "round \(round): the guest is gone though \(victim) did not own it")
                #expect(!probe.isTicking(seconds: 0.05))
            }
            probe.expectNoDoubleRun()
        }
        #expect(survived > 0 || rounds < 20, "no round showed a survivor")
        print("\(rounds) kills: the guest went on after \(survived), and died with its own process in the others")
    }
}

/// A seeded generator, so that a failure can be replayed.
struct SplitMix: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
