// Says whether Grafana's own schema takes a dashboard: fields that it doesn't know, that are missing or of another type,
// also those of panels and queries, are errors. The types are those that Grafana generates from its schema (Apache-2.0).
//
//	go run . ../../deploy/grafana/msgpush.json
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	// The panels and queries that it knows.
	plugins.RegisterDefaultPlugins()
	raw, err := os.ReadFile(os.Args[1])
	refuse(err)
	board := dashboard.Dashboard{}
	refuse(board.UnmarshalJSONStrict(raw))
	refuse(board.Validate())
	fmt.Println("accepted")
}

func refuse(err error) {
	// An empty list of errors is no error, and yet not nil.
	if err != nil && err.Error() != "" {
		fmt.Println(err)
		os.Exit(1)
	}
}
