package registry

import (
	"fmt"
	"strings"
)

// Conf is a registries.conf (version 2) that leads every host of [Hosts] to the registry on address. Two hosts go through
// a mirror and two through a changed location, so that both ways are taken by whoever uses it.
func Conf(address string) string {
	var text strings.Builder
	text.WriteString("# Leads the upstream names of the test images to a local registry.\n")
	text.WriteString("unqualified-search-registries = []\n")
	for n, host := range Hosts {
		local := address + "/" + host
		if n < 2 {
			fmt.Fprintf(&text, "\n[[registry]]\nprefix = %q\nlocation = %q\n\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n",
				host, host, local)
		} else {
			fmt.Fprintf(&text, "\n[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", host, local)
		}
	}
	return text.String()
}
