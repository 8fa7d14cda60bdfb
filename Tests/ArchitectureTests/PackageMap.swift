import Foundation
import ProcessTestKit

/// What Package.swift says each target may import, read from its text: the functions `library`, `tests` and `.executableTarget` with
/// a name, and lists of names joined by `+`.
struct PackageMap {
    /// Target to modules it may import, not counting those of the toolchain.
    let dependencies: [String: Set<String>]

    init() throws {
        let text = try String(contentsOfFile: "\(Checkout.root)/Package.swift", encoding: .utf8)
            .split(separator: "\n").filter { !$0.drop { $0 == " " }.hasPrefix("//") }.joined(separator: "\n")
        // let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
        var named: [String: Set<String>] = [:]
        for match in text.matches(of: /let (\w+) = Target\.Dependency\.product\(\s*name: "(\w+)"/) {
            named[String(match.1)] = [String(match.2)]
        }
        // let vocabulary: [Target.Dependency] = ["GuestMemory", ...]
        for match in text.matches(of: /let (\w+): \[Target\.Dependency\] = \[([^\]]*)\]/) {
            named[String(match.1)] = Set(match.2.matches(of: /"(\w+)"/).map { String($0.1) })
        }
        var targets: [String: Set<String>] = [:]
        for match in text.matches(
            of:
                /(?:\blibrary|\btests|\bbenchmark|\bfuzzer|\.target|\.executableTarget|\.testTarget)\(\s*(?:name: )?"(\w+)"/
        ) {
            let arguments = Self.balanced(text[match.range.upperBound...])
                .replacing(
                    /(?:settings|swiftSettings|cSettings|linkerSettings|exclude|resources|sources|path|publicHeadersPath):\s*(?:\[(?:[^\[\]]|\[[^\]]*\])*\]|"[^"]*"|\w+)/,
                    with: "")
            var found = Set(arguments.matches(of: /"(\w+)"/).map { String($0.1) })
            for word in arguments.matches(of: /\b\w+\b/) { found.formUnion(named[String(word.0)] ?? []) }
            targets[String(match.1)] = found
        }
        dependencies = targets
    }

    /// Text up to the parenthesis that closes what is open at its start.
    private static func balanced(_ text: Substring) -> Substring {
        var depth = 1
        for index in text.indices {
            if text[index] == "(" { depth += 1 }
            if text[index] == ")" { depth -= 1 }
            if depth == 0 { return text[..<index] }
        }
        return text
    }

    /// Modules of the toolchain, and the targets under Sources that may import them. Everybody may use `Synchronization`.
    ///
    /// What decides (devices, formats, processors, the engine) gets its clock, its memory and its descriptors from others, and
    /// so needs no system call; those that are listed all the same say why. Foundation as a whole is for no target.
    static let toolchain: [String: Set<String>] = [
        "Glibc": [
            "LinuxCalls", "GuestMemory", "GuestTime", "HostBackends", "Machine", "MigrationChannels", "LocalMigration",
            "StockQEMU", "Supervisor", "sidestep", "ProcessTestKit",
            "PlatformDevices",  // the real-time clock reads the host's wall clock
            "VirtioDevices",  // a condition variable, which Synchronization lacks
            "RISCVProcessor",  // harts that wait for each other yield
            "MigrationEngine",  // gathered pieces (iovec), holes of a memfd, a condition to wait on; comparing memory
            "MigrationTestKit",  // threads of the scripted guest
        ],
        "FoundationEssentials": [
            "QMPProtocol",  // the text of JSON
            "Supervisor",  // JSON too: what a successor is told
        ],
        "Foundation": [], "Dispatch": [],
    ]
}
