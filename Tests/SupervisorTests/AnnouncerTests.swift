import Glibc
import QMPProtocol
import Testing

@testable import Supervisor

extension SupervisorTests {
    @Suite("Announcing the guest to the network") struct AnnouncerTests {
        @Test("pauses grow by a step, up to the most, as QEMU's do") func delays() {
            let parameters = AnnounceParameters()
            #expect((0..<7).map { parameters.delayMilliseconds(after: $0) } == [50, 150, 250, 350, 450, 550, 550])
            let odd = AnnounceParameters(
                initialMilliseconds: -5, maxMilliseconds: -1, rounds: 1, stepMilliseconds: .max, interfaces: nil)
            #expect((0..<3).map { odd.delayMilliseconds(after: $0) } == [0, 0, 0])
        }

        private func announcements(_ fixture: SupervisorFixture, atLeast count: Int) -> [String] {
            for _ in 0..<5000 where fixture.guest.calls.count(where: { $0.hasPrefix("announce") }) < count {
                usleep(1000)
            }
            return fixture.guest.calls.filter { $0.hasPrefix("announce") }
        }

        @Test("as often as asked for, and for the cards that were named") func rounds() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            _ = try client.run(
                "announce-self", ["initial": 0, "max": 1, "rounds": 4, "step": 1, "interfaces": ["net0", "x"]])
            #expect(announcements(fixture, atLeast: 4) == Array(repeating: "announce net0,x", count: 4))
            // No rounds end what goes on under the name, and begin nothing.
            _ = try client.run(
                "announce-self", ["initial": 100_000, "max": 100_000, "rounds": 9, "step": 1, "id": "slow"])
            _ = try client.run("announce-self", ["initial": 0, "max": 0, "rounds": 0, "step": 1, "id": "slow"])
            _ = try client.run("announce-self", ["initial": 0, "max": 0, "rounds": 1, "step": 1])
            #expect(announcements(fixture, atLeast: 6).suffix(2) == ["announce all", "announce all"])
        }

        @Test("a guest that has come is announced, as the parameters say") func afterArrival() throws {
            let from = try SupervisorFixture(name: "source")
            let to = try MigrationCommandTests.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            _ = try source.run("cont")
            _ = try destination.run(
                "migrate-set-parameters",
                ["announce-initial": 0, "announce-max": 1, "announce-rounds": 3, "announce-step": 1])
            let uri = JSONValue.string("unix:\(to.path)/migration.sock")
            _ = try destination.run("migrate-incoming", ["uri": uri])
            _ = try source.run("migrate", ["uri": uri])
            #expect(try MigrationCommandTests.wait(destination)["status"] == "completed")
            #expect(announcements(to, atLeast: 3) == ["announce all", "announce all", "announce all"])
            #expect(!from.guest.calls.contains("announce all"))
        }
    }
}
