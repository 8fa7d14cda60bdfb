package import DeviceModel
import Glibc
package import LinuxCalls

/// The serial console's host side, made from the configuration.
package final class ConsoleAttachment: Sendable {
    package let backend: any ConsoleBackend
    /// As `query-chardev` and `inspect` tell it.
    package let description: String
    private let stdio: StdioConsole?

    package init(
        _ configuration: ConsoleConfiguration, directory: RunDirectory, loop: EventLoop,
        quit: @escaping @Sendable () -> Void
    ) throws(Refusal) {
        switch configuration {
        case .stdio:
            do throws(SystemCallError) {
                let console = try StdioConsole(loop: loop, quit: quit)
                stdio = console
                backend = console
                description = "stdio"
            } catch { throw Refusal("--console stdio: \(error)") }
        default: throw Refusal("--console \(configuration.argument) is not there yet")
        }
    }

    /// Puts the terminal back as it was.
    package func close() { stdio?.restoreTerminal() }
}
