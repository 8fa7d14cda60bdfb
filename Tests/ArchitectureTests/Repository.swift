import Foundation
import ProcessTestKit

/// The files of the checkout, as the rules read them.
struct SourceFile: CustomStringConvertible {
    /// Relative to the checkout: `Sources/GuestMemory/RAMBlock.swift`.
    let path: String
    let lines: [Substring]

    var description: String { path }

    /// `GuestMemory` of the path above.
    var target: String { path.split(separator: "/").dropFirst().first.map(String.init) ?? "" }

    /// All files below these directories (or these files) with one of the extensions, in order of their names.
    static func all(below directories: [String], extensions: Set<String> = ["swift"]) throws -> [SourceFile] {
        var paths: [String] = []
        for directory in directories {
            var isDirectory: ObjCBool = false
            guard FileManager.default.fileExists(atPath: "\(Checkout.root)/\(directory)", isDirectory: &isDirectory)
            else {
                continue
            }
            if isDirectory.boolValue {
                let names = FileManager.default.enumerator(atPath: "\(Checkout.root)/\(directory)")?.allObjects ?? []
                paths += names.compactMap { $0 as? String }.map { "\(directory)/\($0)" }.filter(isFile)
            } else {
                paths.append(directory)
            }
        }
        return try paths.filter { extensions.contains(($0 as NSString).pathExtension) }.sorted().map { path in
            let text = try String(contentsOfFile: "\(Checkout.root)/\(path)", encoding: .utf8)
            return SourceFile(path: path, lines: text.split(separator: "\n", omittingEmptySubsequences: false))
        }
    }

    private static func isFile(_ path: String) -> Bool {
        var isDirectory: ObjCBool = false
        return FileManager.default.fileExists(atPath: "\(Checkout.root)/\(path)", isDirectory: &isDirectory)
            && !isDirectory.boolValue
    }

    /// Module named by a line that imports one.
    static func importedModule(_ line: Substring) -> String? {
        guard line.contains("import "),
            let match = line.firstMatch(
                of:
                    /^\s*(?:@\w+(?:\([^)]*\))?\s+)*(?:(?:package|public|internal|private|fileprivate)\s+)?import\s+(?:(?:struct|class|enum|protocol|func|var|let|typealias)\s+)?(\w+)/
            )
        else { return nil }
        return String(match.1)
    }
}
