import QMPProtocol
import StockQEMU
import Testing

@Suite("The text of QEMU's options") struct OptionTextTests {
    @Test(
        "doubled commas are commas, and are doubled again",
        arguments: [
            ("file=a,,b.img,format=raw", ["file": "a,b.img", "format": "raw"]),
            (
                "virtio-net-pci,netdev=n0,mac=52:54:00:1:2:3",
                ["virtio-net-pci": "on", "netdev": "n0", "mac": "52:54:00:1:2:3"]
            ),
            ("path=,,,,x=y", ["path": ",,x=y"]),
            ("a=b=c", ["a": "b=c"]),
        ])
    func commas(text: String, values: [String: String]) throws {
        let option = try OptionText(text)
        for (key, value) in values { #expect(option[key] == value) }
        #expect(option.pairs.count == values.count)
        #expect(option.text == text)
    }

    @Test("flags, their negation, and the last of several values") func flags() throws {
        let option = try OptionText("socket,id=c,server,nowait,id=d")
        #expect(option.leading("backend") == "socket")
        #expect(option.isOn("server") && !option.isOn("wait") && option["wait"] == "off")
        #expect(option["id"] == "d")
        #expect(option.removing(["wait"]).text == "socket,id=c,server,id=d")
        #expect(option.setting("id", "e").text == "socket,server,nowait,id=e")
    }

    @Test("JSON is read as dotted keys and written as it was") func json() throws {
        let option = try OptionText(
            #"{"driver": "virtio-blk-pci", "drive": "d0", "addr": {"type": "fd", "on": true}, "list": [1, 2]}"#)
        #expect(option.isJSON && option.leading("driver") == "virtio-blk-pci")
        #expect(option["addr.type"] == "fd" && option["addr.on"] == "on" && option["list.1"] == "2")
        #expect(try JSONValue.parse(option.text)["addr"]?["type"]?.stringValue == "fd")
        #expect(throws: JSONError.self) { try OptionText("{no json") }
    }

    @Test("a command line is cut into its options; what is not known is named") func commandLine() throws {
        let line = try CommandLine(words: ["-M", "q35", "--nodefaults", "-m", "512", "-S"])
        #expect(line.options.map(\.name) == ["machine", "nodefaults", "m", "S"])
        #expect(line.words == ["-machine", "q35", "-nodefaults", "-m", "512", "-S"])
        for words in [["-frobnicate"], ["disk.img"], ["-m"]] {
            let failure = #expect(throws: UpgradeFailure.self) { try CommandLine(words: words) }
            #expect(failure?.kind == .refused && failure?.description.contains(words[0]) == true)
        }
    }
}
