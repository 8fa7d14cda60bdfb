import QMPProtocol
import TOMLKit

/// TOML as the values that configurations are read from.
enum TOMLText {
    /// - Throws: ``JSONError`` with the place of what is wrong.
    static func parse(_ bytes: [UInt8]) throws(JSONError) -> JSONValue {
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw JSONError(description: "the file is not UTF-8")
        }
        let table: TOMLTable
        do {
            table = try TOMLTable(string: text)
        } catch let error as TOMLParseError {
            let place = error.source.begin
            throw JSONError(description: "line \(place.line), column \(place.column): \(error.description)")
        } catch {
            throw JSONError(description: "\(error)")
        }
        // Dates have no other form in JSON than text; no member of a configuration is one.
        return try JSONValue.parse(Array(table.convert(to: .json, options: [.quoteDateAndTimes]).utf8))
    }
}
