// SPDX-License-Identifier: GPL-2.0-or-later
/* Folios, with the questions asked of them (5.18). */
#include <linux/mm.h>
#include <linux/page-flags.h>

int ask(struct page *page);
int ask(struct page *page)
{
	struct folio *folio = page_folio(page);

	return folio_maybe_dma_pinned(folio) + folio_ref_count(folio) + folio_test_anon(folio) +
	       folio_test_swapcache(folio) + folio_test_private(folio) + folio_test_large(folio);
}
