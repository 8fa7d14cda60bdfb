import Glibc
package import LinuxCalls
import Synchronization

/// A program that runs beside the test: what it prints is read all the time, what it should read is typed, and it is killed, with
/// the processes it started, when the test lets go of it or when its time is over.
package final class RunningProgram: Sendable {
    package let name: String
    package let process: ChildProcess
    /// Standard output: the guest's console, for a monitor with `--console stdio`.
    package let output: Transcript
    package let errors: Transcript
    private let input: Mutex<OwnedDescriptor?>
    private let watchdog: OwnedDescriptor

    /// - Parameters:
    ///   - program: A path, or a name that is looked up in `PATH`.
    ///   - environment: Variables beside ours.
    ///   - descriptors: Further descriptors, by their number in the program.
    ///   - limitSeconds: Killed when it still runs then.
    package init(
        _ program: String, _ arguments: [String], name: String? = nil, environment: [String: String] = [:],
        descriptors: [CInt: OwnedDescriptor] = [:], limitSeconds: Double = 300
    ) throws {
        let path = program.contains("/") ? program : HostTools.path(of: program) ?? program
        let (childInput, ourInput) = try OwnedDescriptor.pipe()
        let (ourOutput, childOutput) = try OwnedDescriptor.pipe()
        let (ourErrors, childErrors) = try OwnedDescriptor.pipe()
        var all = descriptors
        all[0] = childInput
        all[1] = childOutput
        all[2] = childErrors
        let variables = Environment.all.merging(environment) { $1 }.map { "\($0)=\($1)" }
        self.name = name ?? path.split(separator: "/").last.map(String.init) ?? path
        process = try ChildProcess(
            path: path, arguments: arguments, environment: variables, descriptors: all, newProcessGroup: true)
        output = try Transcript(name: "the output of \(self.name)", reading: ourOutput)
        errors = try Transcript(name: "the errors of \(self.name)", reading: ourErrors)
        input = Mutex(ourInput)
        watchdog = try .event()
        let (watched, stop) = (process, watchdog)
        _ = try HostThread(name: "watchdog") {
            if (try? stop.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: CInt(limitSeconds * 1000))) == 0 {
                _ = Glibc.kill(-watched.processIdentifier, SIGKILL)
            }
        }
    }

    deinit {
        watchdog.signal()
        killAll()
        _ = process.wait()
    }

    /// Kills it and what it started.
    package func killAll() {
        // Until it is waited for its number is its own, and so is the group's.
        _ = Glibc.kill(-process.processIdentifier, SIGKILL)
        process.kill()
    }

    /// Writes to its standard input.
    package func type(_ text: String) throws {
        try input.withLock { try $0?.writeAll(Array(text.utf8)) }
    }

    /// Ends its standard input.
    package func closeInput() { input.withLock { $0 = nil } }

    /// Waits for its end, and until what it wrote last is in the transcripts.
    @discardableResult
    package func waitForEnd(seconds: Double) throws -> ProcessEnd {
        guard let end = process.wait(timeoutMilliseconds: CInt(seconds * 1000)) else {
            throw ExpectationError.stillRunning(name: name, seconds: seconds, tail: output.tail + errors.tail)
        }
        output.catchUp(seconds: 2)
        errors.catchUp(seconds: output.hasEnded ? 2 : 0)
        return end
    }

    /// Waits for a line on its standard output; when it does not come, what it said on standard error is told too.
    @discardableResult
    package func wait(for text: String, seconds: Double, partial: Bool = false) throws -> String {
        do {
            return try output.wait(for: text, seconds: seconds, partial: partial)
        } catch let error as ExpectationError {
            throw ExpectationError.failed(command: name, end: "\(error)", output: errors.tail)
        }
    }
}

/// Programs of the host that tests use.
package enum HostTools {
    /// Where `PATH` has `name`, with the directories of system programs, which an ordinary user's `PATH` lacks.
    package static func path(of name: String) -> String? {
        searchPath.split(separator: ":").map { "\($0)/\(name)" }.first { allows(X_OK, $0) }
    }

    package static let searchPath = (Environment.all["PATH"] ?? "/usr/bin:/bin") + ":/usr/sbin:/sbin"

    /// Whether we may do that (`R_OK` and so on) to the file. The corresponding C function is `access`.
    package static func allows(_ mode: CInt, _ path: String) -> Bool { unsafe access(path, mode) == 0 }

    /// Runs a program to its end.
    /// - Returns: How it ended, and what it wrote on both its outputs.
    package static func run(
        _ program: String, _ arguments: [String], environment: [String: String] = [:], seconds: Double = 120
    ) throws -> (end: ProcessEnd, output: String, errors: String) {
        let running = try RunningProgram(
            program, arguments, environment: ["PATH": searchPath].merging(environment) { $1 }, limitSeconds: seconds)
        running.closeInput()
        let end = try running.waitForEnd(seconds: seconds)
        try? running.output.wait(seconds: 5, what: "its end") { _ in nil as Void? }
        try? running.errors.wait(seconds: 5, what: "its end") { _ in nil as Void? }
        return (end, running.output.text, running.errors.text)
    }

    /// Runs a program that must succeed, and answers what it printed.
    @discardableResult
    package static func need(_ program: String, _ arguments: [String], seconds: Double = 120) throws -> String {
        let (end, output, errors) = try run(program, arguments, seconds: seconds)
        guard end == .exited(status: 0) else {
            throw ExpectationError.failed(
                command: ([program] + arguments).joined(separator: " "), end: "\(end)", output: output + errors)
        }
        return output
    }
}

/// Our environment variables.
package enum Environment {
    /// Of tests that have many kinds of one thing, `SIDESTEP_ONLY` runs those whose name contains it.
    package static func isWanted(_ name: String) -> Bool { all["SIDESTEP_ONLY"].map { name.contains($0) } ?? true }

    package static let all: [String: String] = {
        var variables: [String: String] = [:]
        var entry = unsafe environ
        while let text = unsafe entry.pointee {
            let parts = unsafe String(cString: text).split(
                separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            if parts.count == 2 { variables[String(parts[0])] = String(parts[1]) }
            unsafe entry += 1
        }
        return variables
    }()
}
