// The entry point of the nonewprivs test image: a set-uid-root program that says which user it became.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
