import Foundation
import LinuxCalls
import ProcessTestKit
import Testing

@Suite("The rules of the repository")
struct RepositoryRuleTests {
    @Test("every import is on the map")
    func importsAreOnTheMap() throws {
        let map = try PackageMap()
        #expect(map.dependencies.count > 20, "Package.swift was not understood")
        for file in try SourceFile.all(below: ["Sources"]) {
            let allowed = try #require(map.dependencies[file.target], "\(file) belongs to no target of Package.swift")
            for module in file.lines.compactMap(SourceFile.importedModule) where module != "Synchronization" {
                // The errors of LinuxCalls carry SystemPackage's `Errno`.
                if module == "SystemPackage", allowed.contains("LinuxCalls") { continue }
                if let users = PackageMap.toolchain[module] {
                    #expect(users.contains(file.target), "\(file) imports \(module)")
                } else {
                    #expect(
                        allowed.contains(module),
                        "\(file) imports \(module), which Package.swift does not give \(file.target)")
                }
            }
        }
    }

    @Test("what runs and what moves it meet in Supervisor alone")
    func halvesDoNotMeet() throws {
        let map = try PackageMap().dependencies
        let runs: Set<String> = [
            "DeviceModel", "PlatformDevices", "VirtioDevices", "HostBackends", "ProcessorModel", "RISCVProcessor",
            "KVMProcessor",
            "Machine",
        ]
        let moves: Set<String> = [
            "MigrationStream", "MigrationEngine", "MigrationChannels", "LocalMigration", "MigrationTestKit",
        ]
        for target in runs { #expect(map[target, default: []].isDisjoint(with: moves), "\(target)") }
        for target in moves { #expect(map[target, default: []].isDisjoint(with: runs), "\(target)") }
    }

    @Test("swift-format finds nothing")
    func formatted() throws {
        let directories = ["Sources", "Tests", "Benchmarks", "Fuzzers", "Package.swift"].map {
            "\(Checkout.root)/\($0)"
        }
        let (end, output, errors) = try HostTools.run(
            "swift", ["format", "lint", "--strict", "--parallel", "-r"] + directories.filter(Checkout.exists),
            seconds: 300)
        #expect(
            end == .exited(status: 0),
            "swift format -i -r Sources Tests Package.swift mends most of it:\n\(output)\(errors)")
    }

    @Test("nothing is put off by a comment")
    func nothingPutOff() throws {
        let directories = [
            "Sources", "Tests", "Guests", "Benchmarks", "Documentation", "Package.swift", "README.md", "test", "demo",
        ]
        for file in try SourceFile.all(below: directories, extensions: ["swift", "c", "h", "S", "sh", "md", ""]) {
            for (number, line) in file.lines.enumerated() {
                // Put together so that these lines do not find themselves.
                for word in ["TO" + "DO", "FIX" + "ME"] {
                    #expect(!line.contains(word), "\(file):\(number + 1): \(line)")
                }
            }
        }
    }

    /// Files that may be longer, each with its reason.
    static let longFiles: [String: String] = [:]

    @Test("no file is longer than 1000 lines")
    func filesAreShort() throws {
        for file in try SourceFile.all(below: ["Sources", "Tests"], extensions: ["swift", "c", "h"]) {
            #expect(
                file.lines.count <= 1001 || Self.longFiles[file.path] != nil, "\(file) has \(file.lines.count) lines")
        }
    }

    @Test("every type for other targets says what it is")
    func typesAreDocumented() throws {
        let declaration =
            #/^(?:@\w+(?:\([^)]*\))? )*package (?:final |indirect |nonisolated )*(?:struct|enum|class|protocol|actor)\b/#
        for file in try SourceFile.all(below: ["Sources"]) {
            for (number, line) in file.lines.enumerated()
            where line.contains("package ") && line.prefixMatch(of: declaration) != nil {
                let before = file.lines[..<number].last { !$0.hasPrefix("@") }
                #expect(before?.hasPrefix("///") == true, "\(file):\(number + 1): \(line)")
            }
        }
    }

    @Test("who promises the compiler something says why it holds")
    func promisesAreExplained() throws {
        for file in try SourceFile.all(below: ["Sources"]) {
            for (number, line) in file.lines.enumerated()
            where line.contains(/@unchecked Sendable|nonisolated\(unsafe\)/) && !line.contains(/^\s*\/\//) {
                let near = file.lines[max(0, number - 6)...min(file.lines.count - 1, number + 3)]
                #expect(
                    near.contains { $0.contains("SAFETY:") }, "\(file):\(number + 1) needs a SAFETY: comment beside it")
            }
        }
    }

    @Test("every link in the documentation leads somewhere")
    func linksLeadSomewhere() throws {
        let pages = ["README.md", "CHANGELOG.md", "SPECIFICATION.md", "Documentation", "Guests", "Benchmarks"]
        for file in try SourceFile.all(below: pages, extensions: ["md"]) {
            let directory = (file.path as NSString).deletingLastPathComponent
            for line in file.lines {
                for match in line.matches(of: /\]\(([^)#]+)[^)]*\)/) where !match.1.contains("://") {
                    let target = (directory as NSString).appendingPathComponent(String(match.1))
                    #expect(Checkout.exists("\(Checkout.root)/\(target)"), "\(file) links to \(match.1)")
                }
            }
        }
    }
}
