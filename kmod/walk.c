// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Page-table entries of one mapping, under the mmap_lock for writing and, where mappings have locks of their own, with
 * all mappings' locks taken: no fault is under way. Reclaim, truncation and collapsing of shared memory may still
 * change entries: they take the page-table lock.
 *
 * Only inline helpers: walk_page_range() and pte_offset_map_lock() are not exported to modules.
 */
#include <linux/pagemap.h>
#include <linux/smp.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <asm/cpufeature.h>
#include <asm/invpcid.h>
#include <asm/special_insns.h>
#include <asm/tlbflush.h>

#include "icp_features.h"
#include "icp_track.h"

#ifdef ICP_HAVE_SOFTLEAF
#include <linux/leafops.h>
#endif

#ifdef VM_SHADOW_STACK
#define NO_TRACKING (VM_PFNMAP | VM_MIXEDMAP | VM_IO | VM_HUGETLB | VM_SHADOW_STACK)
#else
#define NO_TRACKING (VM_PFNMAP | VM_MIXEDMAP | VM_IO | VM_HUGETLB)
#endif

bool icp_can_track(struct vm_area_struct *vma)
{
	return !(vma->vm_flags & NO_TRACKING);
}

/* From now on the kernel maps pages of it read-only until they are written, and keeps soft-dirty bits exact. */
void icp_arm_vma(struct vm_area_struct *vma)
{
#ifdef ICP_HAVE_VM_FLAGS_CLEAR
	vm_flags_clear(vma, VM_SOFTDIRTY);
#else
	vma->vm_flags &= ~VM_SOFTDIRTY;
#endif
	/* vma_set_page_prot() would do it, and is not exported. */
	if (vma->vm_flags & VM_SHARED)
		WRITE_ONCE(vma->vm_page_prot, __pgprot(pgprot_val(vma->vm_page_prot) & ~_PAGE_RW));
}

/*
 * Somebody besides the page tables may be writing to the page: direct I/O, process_vm_writev(), RDMA. It stays writable
 * and logged. (Before 5.19, write-protecting it could even split the writer from the process.) Pages that were just
 * mapped look like that too for a while, being in per-CPU lists.
 */
static bool page_is_busy(struct page *page)
{
#ifdef ICP_HAVE_FOLIO
	struct folio *folio = page_folio(page);

	if (folio_test_large(folio))
		return folio_maybe_dma_pinned(folio);
	return folio_ref_count(folio) > atomic_read(&page->_mapcount) + 1 +
						(folio_test_anon(folio) ? folio_test_swapcache(folio) :
									  1 + folio_test_private(folio));
#else
	if (PageCompound(page))
		return page_maybe_dma_pinned(compound_head(page));
	return page_count(page) > atomic_read(&page->_mapcount) + 1 +
					  (PageAnon(page) ? !!PageSwapCache(page) : 1 + page_has_private(page));
#endif
}

static bool page_is_huge_and_busy(struct page *page)
{
#ifdef ICP_HAVE_FOLIO
	return folio_maybe_dma_pinned(page_folio(page));
#else
	return page_maybe_dma_pinned(compound_head(page));
#endif
}

static void note_compound(struct icp_walk *walk, struct page *page, unsigned long address)
{
	unsigned long offset;

	walk->compound_start = walk->compound_end = 0;
	if (!PageCompound(page))
		return;
	offset = (page_to_pfn(page) - page_to_pfn(compound_head(page))) << PAGE_SHIFT;
	walk->compound_start = address > offset ? address - offset : 0;
	walk->compound_end = walk->compound_start + page_size(compound_head(page));
}

#ifdef ICP_HAVE_SOFTLEAF
static bool is_swapped(pte_t pte)
{
	return softleaf_is_swap(softleaf_from_pte(pte));
}

static bool is_marker(pte_t pte)
{
	return softleaf_is_marker(softleaf_from_pte(pte));
}
#else
static bool is_swapped(pte_t pte)
{
	return !non_swap_entry(pte_to_swp_entry(pte));
}

static bool is_marker(pte_t pte)
{
#ifdef ICP_HAVE_PTE_MARKER
	return is_pte_marker_entry(pte_to_swp_entry(pte));
#else
	return false;
#endif
}
#endif

static u32 state_of_swap(pte_t pte, bool *written, bool *busy)
{
	*written = pte_swp_soft_dirty(pte);
	*busy = false;
	if (is_swapped(pte))
		return ICP_RANGE_DATA;
	if (is_marker(pte))
		return ICP_RANGE_NONE;
	/* Being migrated, on a device, poisoned: whose page it is is not asked for; it counts as written, and again. */
	*written = true;
	*busy = true;
	return ICP_RANGE_DATA;
}

static bool exchange_pte(pte_t *at, pte_t old, pte_t new)
{
	return cmpxchg(&at->pte, old.pte, new.pte) == old.pte;
}

/* One entry, under its lock. */
static int look_at_pte(pte_t *at, unsigned long address, struct icp_walk *walk)
{
	pte_t pte = READ_ONCE(*at);
	bool written = false, busy = false;
	u32 state = ICP_RANGE_NONE;
	int error;

	walk->compound_start = walk->compound_end = 0;
	if (pte_present(pte)) {
		struct page *page = NULL;

		written = pte_write(pte) || pte_soft_dirty(pte);
		if (is_zero_pfn(pte_pfn(pte))) {
			/* Comes with the soft-dirty bit when a page is first read, and holds what was there: nothing. */
			state = ICP_RANGE_ZERO;
			written = false;
		} else if (!pte_special(pte) && pfn_valid(pte_pfn(pte)))
			page = pte_page(pte);
		else
			state = ICP_RANGE_FILE;
		if (page) {
			state = PageAnon(page) ? ICP_RANGE_DATA : ICP_RANGE_FILE;
			/* A page that cannot be written through this mapping cannot have a writer that came through it,
			 * and many have readers. */
			busy = written && page_is_busy(page);
			note_compound(walk, page, address);
		}
	} else if (!pte_none(pte)) {
		state = state_of_swap(pte, &written, &busy);
	}
	error = walk->entry(walk, address, 1, state, written, busy);
	if (error || !walk->rearm || !written || busy)
		return error;
	if (pte_present(pte)) {
		/* The processor sets accessed and dirty bits behind the lock; nothing else changes. */
		while (!exchange_pte(at, pte, pte_clear_soft_dirty(pte_wrprotect(pte))))
			pte = READ_ONCE(*at);
		walk->flushed++;
	} else if (!pte_none(pte)) {
		exchange_pte(at, pte, pte_swp_clear_soft_dirty(pte));
	}
	return 0;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static int look_at_huge(struct vm_area_struct *vma, pmd_t *at, unsigned long address, unsigned long end,
			struct icp_walk *walk)
{
	pmd_t pmd = READ_ONCE(*at);
	struct page *page = pmd_page(pmd);
	bool written = pmd_write(pmd) || pmd_soft_dirty(pmd);
	bool whole = !(address & ~PMD_MASK) && end - address == PMD_SIZE;
	/* Anonymous mappings hold anonymous pages and the huge page of zeros. */
	bool zero = vma_is_anonymous(vma) && !PageAnon(compound_head(page));
	bool busy;
	u32 state;
	int error;

	written = written && !zero;
	busy = written && page_is_huge_and_busy(page);
	state = zero ? ICP_RANGE_ZERO : PageAnon(compound_head(page)) ? ICP_RANGE_DATA : ICP_RANGE_FILE;

	walk->compound_start = address & PMD_MASK;
	walk->compound_end = walk->compound_start + PMD_SIZE;
	/* Part of a huge page cannot be tracked afresh without the rest: it stays as it is. */
	error = walk->entry(walk, address, (end - address) >> PAGE_SHIFT, state, written, busy || (written && !whole));
	if (error || !walk->rearm || !written || busy || !whole)
		return error;
	for (;;) {
		pmd_t new = pmd_clear_soft_dirty(pmd_wrprotect(pmd));

		if (cmpxchg(&at->pmd, pmd.pmd, new.pmd) == pmd.pmd)
			break;
		pmd = READ_ONCE(*at);
	}
	walk->flushed++;
	return 0;
}
#endif

/* The part of a mapping below one page-table of the lowest level. */
static int walk_pmd(struct vm_area_struct *vma, pmd_t *pmdp, unsigned long start, unsigned long end,
		    struct icp_walk *walk)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long at;
	spinlock_t *lock;
	pmd_t pmd;
	pte_t *pte;
	int error = 0;

	walk->compound_start = walk->compound_end = 0;
again:
	pmd = READ_ONCE(*pmdp);
	barrier();
	if (pmd_none(pmd))
		return walk->entry(walk, start, (end - start) >> PAGE_SHIFT, ICP_RANGE_NONE, false, false);
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	if (!pmd_present(pmd)) /* a huge page being migrated */
		return walk->entry(walk, start, (end - start) >> PAGE_SHIFT, ICP_RANGE_DATA, true, true);
	if (pmd_trans_huge(pmd)) {
		lock = pmd_lock(mm, pmdp);
		if (!pmd_present(*pmdp) || !pmd_trans_huge(*pmdp)) {
			spin_unlock(lock);
			goto again;
		}
		error = look_at_huge(vma, pmdp, start, end, walk);
		spin_unlock(lock);
		return error;
	}
#endif
	if (pmd_bad(pmd)) /* a leaf of some other kind: unknown, hence written */
		return walk->entry(walk, start, (end - start) >> PAGE_SHIFT, ICP_RANGE_DATA, true, true);

	/* As pte_offset_map_lock(): the table may be taken away (file collapse) until its lock is held. */
	rcu_read_lock();
	lock = pte_lockptr(mm, &pmd);
	spin_lock(lock);
	if (pmd_val(READ_ONCE(*pmdp)) != pmd_val(pmd)) {
		spin_unlock(lock);
		rcu_read_unlock();
		goto again;
	}
	pte = pte_offset_kernel(&pmd, start);
	for (at = start; at < end && !error; at += PAGE_SIZE, pte++) {
		walk->looked++;
		error = look_at_pte(pte, at, walk);
	}
	spin_unlock(lock);
	rcu_read_unlock();
	return error;
}

/* The next table of the lowest level at or after `start`; NULL: nothing is mapped up to *upto. */
static pmd_t *find_pmd(struct mm_struct *mm, unsigned long start, unsigned long end, unsigned long *upto)
{
	pgd_t *pgd = pgd_offset(mm, start);
	p4d_t *p4d;
	pud_t *pud;

	*upto = pgd_addr_end(start, end);
	if (pgd_none(READ_ONCE(*pgd)))
		return NULL;
	p4d = p4d_offset(pgd, start);
	*upto = p4d_addr_end(start, end);
	if (p4d_none(READ_ONCE(*p4d)))
		return NULL;
	pud = pud_offset(p4d, start);
	*upto = pud_addr_end(start, end);
	if (pud_none(READ_ONCE(*pud)) || (pud_val(READ_ONCE(*pud)) & _PAGE_PSE))
		return NULL; /* huge ones are of mappings that are not tracked */
	*upto = pmd_addr_end(start, end);
	return pmd_offset(pud, start);
}

bool icp_is_huge(struct vm_area_struct *vma, unsigned long address)
{
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	unsigned long upto;
	pmd_t *pmd = find_pmd(vma->vm_mm, address, address + PAGE_SIZE, &upto);
	pmd_t value = pmd ? READ_ONCE(*pmd) : __pmd(0);

	return !pmd_none(value) && (!pmd_present(value) || pmd_trans_huge(value));
#else
	return false;
#endif
}

int icp_walk_range(struct vm_area_struct *vma, unsigned long start, unsigned long end, struct icp_walk *walk)
{
	unsigned long upto;
	int error = 0;

	for (; start < end && !error; start = upto) {
		pmd_t *pmd = find_pmd(vma->vm_mm, start, end, &upto);

		if (pmd)
			error = walk_pmd(vma, pmd, start, upto, walk);
		else
			error = walk->entry(walk, start, (upto - start) >> PAGE_SHIFT, ICP_RANGE_NONE, false, false);
	}
	return error;
}

#ifdef ICP_HAVE_FLUSH_TLB_ALL
static void flush_this_cpu(void *unused)
{
	__flush_tlb_all();
}
#else
/*
 * What the kernel's own does on a processor: it is for some of the kernel's modules alone (7.2). Interrupts are off here.
 * Under Xen without hardware's help neither may be done; icp_can_flush() says so, and the module is not loaded there.
 */
static void flush_this_cpu(void *unused)
{
	unsigned long cr4;

	if (boot_cpu_has(X86_FEATURE_INVPCID)) {
		invpcid_flush_all();
	} else if (boot_cpu_has(X86_FEATURE_PGE)) {
		/* Both changes of the bit empty the TLB, and in the end it is what the kernel believes it to be. */
		cr4 = native_read_cr4();
		asm volatile("mov %0, %%cr4" : : "r"(cr4 ^ X86_CR4_PGE) : "memory");
		asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
	} else {
		native_write_cr3(__native_read_cr3());
	}
}
#endif

bool icp_can_flush(void)
{
#ifdef ICP_HAVE_FLUSH_TLB_ALL
	return true;
#else
	return !boot_cpu_has(X86_FEATURE_XENPV);
#endif
}

/* Of all processors, and all address spaces: one that is not running this address space may keep entries of it. */
void icp_flush_tlb(void)
{
	if (!icp_no_flush)
		on_each_cpu(flush_this_cpu, NULL, 1);
}
