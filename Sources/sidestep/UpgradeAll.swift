import LinuxCalls
import QMPProtocol
import Supervisor
import Synchronization

/// `sidestep upgrade --all`: so many guests at a time, each on a thread of its own that waits for its answer.
struct UpgradeAll {
    let request: JSONObject
    let atMost: Int
    let output: FormatOption

    /// What became of one guest.
    private struct Result: Sendable {
        var name: String
        var status: ExitStatus
        var report: JSONValue?
        var error: String?
        var nanoseconds: Int64

        var word: String {
            switch status {
            case .done: "upgraded"
            case .rolledBack: "rolled-back"
            case .lost: "lost"
            default: "failed"
            }
        }

        var json: JSONValue {
            var object: JSONObject = [
                "name": .string(name), "result": .string(word),
                "command-us": JSONValue(Double(nanoseconds) / 1000),
            ]
            object["report"] = report
            object["error"] = error.map { .string($0) }
            return .object(object)
        }
    }

    private final class Work: Sendable {
        private struct State {
            var next = 0
            var results: [Result] = []
        }
        private let guests: [RunDirectory.Entry]
        private let state = Mutex(State())

        init(_ guests: [RunDirectory.Entry]) { self.guests = guests }

        func take() -> RunDirectory.Entry? {
            state.withLock { state in
                guard state.next < guests.count else { return nil }
                defer { state.next += 1 }
                return guests[state.next]
            }
        }

        func add(_ result: Result) { state.withLock { $0.results.append(result) } }
        var results: [Result] { state.withLock { $0.results } }
    }

    func run() throws {
        let guests = try RunDirectory.list()
        guard !guests.isEmpty else { throw Refusal(.noSuchGuest, "no guest runs") }
        let start = monotonicNanoseconds()
        let work = Work(guests)
        let threads = try (0..<min(atMost, guests.count)).map { _ in
            try HostThread(name: "upgrade") { [request] in
                while let guest = work.take() { work.add(Self.upgrade(guest, request)) }
            }
        }
        for thread in threads { thread.join() }
        let nanoseconds = monotonicNanoseconds() - start
        let results = work.results.sorted { $0.name < $1.name }
        func count(_ word: String) -> Int { results.count { $0.word == word } }
        let pauses = results.compactMap { $0.report?["pause-us"]?.doubleValue }.sorted()
        var total: JSONObject = [
            "guests": .array(results.map(\.json)), "total-us": JSONValue(Double(nanoseconds) / 1000),
        ]
        for word in ["upgraded", "rolled-back", "lost", "failed"] { total[word] = JSONValue(count(word)) }
        if !pauses.isEmpty {
            total["pause-us"] = [
                "p50": JSONValue(pauses[pauses.count / 2]), "p99": JSONValue(pauses[pauses.count * 99 / 100]),
                "max": JSONValue(pauses[pauses.count - 1]),
            ]
        }
        output.show(.object(total)) { total in
            var lines = [["GUEST", "RESULT", "PROCESS", "PAUSE", "TOTAL"]]
            for result in results {
                lines.append([
                    result.name, result.word, result.report?["process"].map(\.json) ?? "-",
                    result.report.map { Upgrade.milliseconds($0["pause-us"]) } ?? "-",
                    result.error ?? Upgrade.milliseconds(result.report?["total-us"]),
                ])
            }
            let pause = total["pause-us"].map {
                "; pause p50 \(Upgrade.milliseconds($0["p50"])), p99 \(Upgrade.milliseconds($0["p99"])), max "
                    + Upgrade.milliseconds($0["max"])
            }
            return table(lines)
                + "\n\(count("upgraded")) of \(results.count) guests upgraded in \(Upgrade.milliseconds(total["total-us"]))"
                + ", \(count("rolled-back")) rolled back, \(count("lost")) lost, \(count("failed")) failed"
                + (pause ?? "")
        }
        flushOutput()
        let status: ExitStatus
        if count("lost") > 0 {
            status = .lost
        } else if count("rolled-back") == results.count {
            status = .rolledBack
        } else if count("rolled-back") > 0 {
            status = .partlyRolledBack
        } else if count("failed") > 0 {
            status = .commandFailed
        } else {
            return
        }
        throw Refusal(status, status.meaning)
    }

    private static func upgrade(_ guest: RunDirectory.Entry, _ request: JSONObject) -> Result {
        let start = monotonicNanoseconds()
        do throws(Refusal) {
            let report = try Upgrade.upgrade(guest, request)
            return Result(
                name: guest.name, status: .done, report: report, nanoseconds: monotonicNanoseconds() - start)
        } catch {
            return Result(
                name: guest.name, status: error.status, error: error.description,
                nanoseconds: monotonicNanoseconds() - start)
        }
    }
}
