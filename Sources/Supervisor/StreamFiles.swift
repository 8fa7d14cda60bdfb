import Glibc
import LinuxCalls
package import MigrationStream

/// Migration streams in files and pipes, looked at without a guest.
package enum StreamFiles {
    /// What there is to say about a stream.
    package struct Result: Sendable {
        package var report: StreamReport
        /// Why the report ends where it does, when it is not the stream's own end.
        package var failure: StreamError?
    }

    /// Reads a whole stream; memory does not grow with it.
    /// - Parameter path: A file, or `-` for standard input.
    /// - Throws: ``Refusal`` when it cannot be opened or read.
    package static func analyse(
        path: String, options: StreamAnalysis.Options = StreamAnalysis.Options()
    ) throws(Refusal) -> Result {
        let file: OwnedDescriptor
        do {
            // Not /dev/stdin, which cannot be opened when it is a socket.
            file = path == "-" ? try OwnedDescriptor.duplicate(of: 0) : try OwnedDescriptor.open(path, flags: O_RDONLY)
        } catch { throw Refusal("\(path): \(error)") }
        var analysis = StreamAnalysis(options: options)
        while true {
            let count: Int
            do {
                count = try unsafe analysis.input.fill(minimum: 1 << 16) { space throws(SystemCallError) in
                    try unsafe file.read(into: space)
                }
            } catch { throw Refusal("\(path): \(error)") }
            do throws(StreamError) {
                try analysis.run(isFinal: count == 0)
            } catch {
                return Result(report: analysis.report, failure: error)
            }
            if count == 0 { return Result(report: analysis.report, failure: nil) }
        }
    }
}
