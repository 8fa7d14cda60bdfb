package import ComponentState

/// Which components a destination expects, which came, and which layout the source writes. Pure.
///
/// Stock QEMU starts a guest whose sections did not all come; this one never does.
package struct SectionRegister {
    private struct Key: Hashable {
        let name: String
        let instance: UInt32
    }

    private struct Entry {
        let key: Key
        let component: any StatefulComponent
        var isReceived = false
    }

    private var entries: [Entry] = []
    private var indices: [Key: Int] = [:]
    /// Behind the section that came last: sections mostly come in the order in which they are expected.
    private var next = 0
    /// Layouts that fit every section seen so far, the preferred one first.
    package private(set) var candidates: [StateLayout]

    /// - Parameter layouts: The layouts to consider, in order of preference.
    package init(components: [any StatefulComponent], layouts: [StateLayout] = StateLayout.allCases) {
        candidates = layouts
        for component in components {
            let key = Key(name: component.sectionName, instance: component.instance)
            precondition(indices[key] == nil, "two components are called \(key.name) \(key.instance)")
            indices[key] = entries.count
            entries.append(Entry(key: key, component: component))
        }
    }

    /// The layout to read the next section in.
    package var layout: StateLayout { candidates.first ?? .native }

    /// The component for a section that begins, which from now on counts as received.
    package mutating func begin(name: String, instance: UInt32, version: UInt32) throws(MigrationError)
        -> any StatefulComponent
    {
        let key = Key(name: name, instance: instance)
        let isNext = next < entries.count && entries[next].key == key
        guard let index = isNext ? next : indices[key] else {
            throw MigrationError(
                .unknownSection, in: .switchover,
                "this machine has no section \(Self.text(key)) (version \(version)); give it that device, or start the "
                    + "source without it")
        }
        let component = entries[index].component
        guard !entries[index].isReceived else {
            throw MigrationError(
                .doubledSection, in: .switchover,
                "section \(Self.text(key)) came twice; the stream is damaged, take it from the source again")
        }
        guard component.readableVersions.contains(version) else {
            let range = component.readableVersions
            throw MigrationError(
                .stateRejected, in: .switchover,
                "section \(Self.text(key)) has version \(version), known are \(range.lowerBound) to \(range.upperBound); "
                    + "the source is a release that is not understood here")
        }
        entries[index].isReceived = true
        next = index + 1
        if candidates.count > 1 {
            let fitting = candidates.filter { component.sectionVersion(for: $0) == version }
            if !fitting.isEmpty { candidates = fitting }
        }
        return component
    }

    /// Whether the component at that place among all has its state.
    func isReceived(_ place: Int) -> Bool { entries.indices.contains(place) && entries[place].isReceived }

    /// Counts a component as received that has its state already, by its place among all.
    mutating func stand(_ place: Int) throws(MigrationError) {
        guard entries.indices.contains(place), !entries[place].isReceived else {
            throw MigrationError(
                .doubledSection, in: .switchover,
                "component \(place) of \(entries.count) is to stand as it is, and is not known or came as well")
        }
        entries[place].isReceived = true
    }

    /// Throws unless some layout that fits what came has all its sections.
    package func requireAll() throws(MigrationError) {
        let missing = entries.filter { !$0.isReceived }
        if missing.isEmpty { return }
        var fewest: [String]?
        for layout in candidates {
            let needed = missing.filter { $0.component.sectionVersion(for: layout) != nil }
            if needed.isEmpty { return }
            if fewest == nil || needed.count < fewest!.count { fewest = needed.map { Self.text($0.key) } }
        }
        guard let fewest else { return }
        throw MigrationError(
            .missingSection, in: .commit,
            "the stream ended without section \(fewest.joined(separator: ", ")); start this side without the device, or "
                + "take the stream from the source again")
    }

    /// What each section that came and is not needed holds.
    package var surplus: [String] {
        entries.compactMap { entry in
            guard entry.isReceived, let text = entry.component.surplus else { return nil }
            return "section \(Self.text(entry.key)) was read and left out: \(text)"
        }
    }

    private static func text(_ key: Key) -> String {
        key.instance == 0 ? key.name : "\(key.name) \(key.instance)"
    }
}
